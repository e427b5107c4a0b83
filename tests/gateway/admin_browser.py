"""What tests of the admin page do in a browser: keys, focus, and what every part of it must be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway.admin_gateway import ADMIN_KEY

if TYPE_CHECKING:
    from tests.browser import Browser
    from tests.gateway.admin_gateway import Demo

TAB, ENTER, ESCAPE, SHIFT, SPACE = "\ue004", "\ue007", "\ue00c", "\ue008", " "
DOWN, BACKSPACE = "\ue015", "\ue003"


def chord(browser: Browser, *keys: str) -> None:
    """Keys together, as Shift and Tab."""
    actions = [{"type": "keyDown", "value": key} for key in keys]
    actions += [{"type": "keyUp", "value": key} for key in reversed(keys)]
    browser._post("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})


def focused(browser: Browser) -> str:
    """What has the focus: the name that a screen reader says of it, or its text."""
    found: str = browser.run(
        "const e = document.activeElement;"
        "return e.getAttribute('aria-label') ?? e.labels?.[0]?.textContent ?? e.textContent"
    )
    return found.strip()


def tab_to(browser: Browser, name: str, *, back: bool = False, most: int = 40) -> None:
    """Press Tab until something of this name has the focus, which can be seen."""
    for _ in range(most):
        chord(browser, SHIFT, TAB) if back else browser.press(TAB)
        if focused(browser) == name:
            style = "return getComputedStyle(document.activeElement).outlineStyle"
            assert browser.run(style) != "none"
            return
    pytest.fail(f"no way by Tab to {name!r}; at {focused(browser)!r}")


def open_page(browser: Browser, gateway: Demo, part: str = "") -> None:
    """The page with its key typed in, if it does not know it yet."""
    browser.open("about:blank")
    browser.open(f"{gateway.url}/admin#{part}")
    browser.wait_for("document.activeElement.id == 'key' || !document.querySelector('main').hidden")
    if browser.run("return document.querySelector('main').hidden"):
        browser.press(*ADMIN_KEY, ENTER)
    browser.wait_for("document.querySelector('#state').textContent == 'connected'")


def errors_in(browser: Browser, *expected: str) -> list[dict[str, Any]]:
    """What the console complains of, but for answers that a test provokes."""
    return [
        entry
        for entry in browser.log()
        if entry["level"] in ("SEVERE", "WARNING")
        and not any(words in entry["message"] for words in expected)
    ]


def check_nothing_is_unnamed_or_foreign(browser: Browser, gateway: Demo) -> None:
    """What a page of any part must be like."""
    nameless = browser.run(
        "return [...document.querySelectorAll('input, select, textarea')]"
        ".filter(e => !e.labels.length).map(e => e.outerHTML)"
    )
    assert nameless == []
    hosts = browser.run(
        "const names = performance.getEntriesByType('resource').map(e => new URL(e.name).origin);"
        "return [...new Set(names)]"
    )
    assert hosts == [gateway.url]
    assert browser.run("return [...document.querySelectorAll('*')].every(e => e.tabIndex <= 0)")
    assert browser.run("return document.images.length + document.scripts.length") == 1
    assert browser.run("return document.cookie + localStorage.length") == "0"
    text = browser.text("body")
    assert not re.search(r"\bNaN\b|undefined|\[object|Invalid Date", text), text
