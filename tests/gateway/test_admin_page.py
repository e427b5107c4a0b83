"""The admin page in a browser, over a whole gateway."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from octavo.gateway.model import KeyInfo
from octavo.ledger.record import EscalationRecord
from octavo.ledger.store import open_ledger
from tests.browser import CHROMIUM, DRIVER, Browser, browsing
from tests.gateway.admin_browser import (
    BACKSPACE,
    DOWN,
    ENTER,
    ESCAPE,
    SHIFT,
    SPACE,
    TAB,
    check_nothing_is_unnamed_or_foreign,
    chord,
    errors_in,
    focused,
    open_page,
    tab_to,
)
from tests.gateway.admin_gateway import (
    ADMIN_KEY,
    CALLER_KEY,
    Demo,
    add_counters,
    add_keys,
    add_past,
    demo,
)
from tests.gateway.fake_answers import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">{{7*7}}'"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
NUM_KEYS = 2000

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs Debian's chromium and chromium-driver"
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with demo(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def client(gateway: Demo) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def many_keys(gateway: Demo) -> None:
    add_keys(gateway, NUM_KEYS)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def test_pages_of_keys_of_any_size_lead_to_all_of_them(
    many_keys: None, client: httpx.Client
) -> None:
    for limit in (1, 999, 1000):
        ids: list[str] = []
        has_more = True
        while has_more and len(ids) < (5 if limit == 1 else NUM_KEYS + limit):
            query = {"limit": limit, "after": ids[-1] if ids else "k"}
            page = client.get("/admin/v1/keys", params=query, headers=ADMIN).json()
            ids += [key["id"] for key in page["data"]]
            has_more = page["has_more"]
        assert has_more == (limit == 1)
        assert ids == [f"k{number:05}" for number in range(len(ids))]
        assert limit == 1 or len(ids) == NUM_KEYS


@needs_browser
@pytest.mark.timeout(120)
def test_a_key_is_made_rotated_and_revoked_by_keyboard_alone(
    browser: Browser, gateway: Demo, client: httpx.Client
) -> None:
    browser.resize(1280, 900)
    browser.open(f"{gateway.url}/admin")
    browser.wait_for("document.activeElement.id == 'key'")
    browser.press(*"not-the-admin-key", ENTER)
    browser.wait_for("document.querySelector('#refusal').textContent")
    assert "does not know this admin key" in browser.text("#refusal")
    assert browser.run("return sessionStorage.length") == 0
    browser.press(*ADMIN_KEY, ENTER)
    browser.wait_for("document.querySelector('#state').textContent == 'connected'")
    assert focused(browser) == "Keys"
    assert browser.run("return Object.values(sessionStorage).join()") == ADMIN_KEY

    tab_to(browser, "New key")
    browser.press(ENTER)
    browser.wait_for("document.querySelector('dialog[open]')")
    assert focused(browser) == "Name"
    browser.press(*HOSTILE, TAB, *"acme", ENTER)
    browser.wait_for("document.querySelector('dialog input[readonly]')")
    secret = browser.run("return document.activeElement.value")
    found = re.fullmatch(r"oct_([0-9a-f]+)_[0-9a-f]{64}", secret)
    assert found, secret
    assert HOSTILE in browser.text("dialog h2")
    headers = {"Authorization": f"Bearer {secret}"}
    assert client.get("/v1/models", headers=headers).status_code == 200
    browser.press(ESCAPE)
    browser.wait_for("!document.querySelector('dialog')")
    everything = "return document.documentElement.outerHTML + JSON.stringify(sessionStorage)"
    assert secret not in browser.run(everything)
    assert browser.text(f"tr[data-key='{found[1]}'] td") == HOSTILE
    assert focused(browser) == f"Change {HOSTILE}"

    tab_to(browser, f"Rotate {HOSTILE}")
    browser.press(ENTER)
    browser.wait_for("document.querySelector('dialog[open]')")
    assert focused(browser).startswith("The old key passes")
    browser.press(*"5", ENTER)  # 245 hours
    browser.wait_for("document.querySelector('dialog input[readonly]')")
    second = browser.run("return document.activeElement.value")
    assert second != secret
    assert second.startswith(f"oct_{found[1]}_")
    assert "The old key passes until" in browser.text("dialog")
    browser.press(ESCAPE)
    browser.wait_for("!document.querySelector('dialog')")

    tab_to(browser, f"Revoke {HOSTILE}")
    browser.press(ENTER)
    browser.wait_for("document.querySelector('dialog[role=alertdialog]')")
    assert focused(browser) == "Cancel"
    browser.press(ENTER)  # the first Enter does no harm
    browser.wait_for("!document.querySelector('dialog')")
    assert focused(browser) == f"Revoke {HOSTILE}"
    browser.press(ENTER)
    browser.wait_for("document.querySelector('dialog')")
    tab_to(browser, "Why, for the audit log", back=True)
    browser.press(*"lost <b>laptop</b>")
    tab_to(browser, "Revoke for good")
    browser.press(ENTER)
    browser.wait_for("!document.querySelector('dialog')")
    assert focused(browser) == "New key"
    key = client.get(f"/admin/v1/keys/{found[1]}", headers=ADMIN).json()
    assert (key["status"], key["name"], key["tenant"]) == ("revoked", HOSTILE, "acme")
    answer = client.get("/v1/models", headers={"Authorization": f"Bearer {second}"})
    assert answer.status_code == 401

    tab_to(browser, "Audit log", back=True)
    browser.press(ENTER)
    browser.wait_for("document.querySelectorAll('main tbody tr').length >= 3")
    assert "lost <b>laptop</b>" in browser.text("main tbody")
    assert HOSTILE in browser.text("main tbody")
    assert browser.run("return document.title").startswith("Audit log")
    check_nothing_is_unnamed_or_foreign(browser, gateway)
    assert errors_in(browser, "401") == []


@needs_browser
@pytest.mark.timeout(120)
def test_a_refused_change_stays_in_its_dialog_and_says_why(
    browser: Browser, gateway: Demo, client: httpx.Client
) -> None:
    stored, _ = gateway.store.create(KeyInfo(key_id="changed", name="one", tenant="t"), actor="t")
    open_page(browser, gateway, "keys")
    browser.wait_for("document.querySelector('tr[data-key=changed]')")
    tab_to(browser, "Change one")
    browser.press(ENTER)
    browser.wait_for("document.querySelector('dialog[open]')")
    tab_to(browser, "Limits, budgets, routes, tokens, tags")
    browser.press(ENTER)
    tab_to(browser, "gold")
    browser.press(SPACE)
    tab_to(browser, "Most tokens of an answer")
    browser.press(*"100")
    tab_to(browser, "Tags")
    browser.press(*"no value")
    tab_to(browser, "Save")
    browser.press(ENTER)
    browser.wait_for("document.querySelector('dialog .error').textContent")
    assert "no value=value" in browser.text("dialog .error")
    tab_to(browser, "Tags", back=True)
    browser.press(*"=<i>1</i>")
    tab_to(browser, "Save")
    browser.press(ENTER)
    browser.wait_for("!document.querySelector('dialog')")
    key = client.get("/admin/v1/keys/changed", headers=ADMIN).json()
    assert key["tags"] == {"no value": "<i>1</i>"}
    assert (key["limits"], key["max_tokens"], key["name"]) == (["gold"], 100, "one")
    assert key["expires"] is None
    assert errors_in(browser, "400") == []
    assert stored.info.limits == ()


@needs_browser
@pytest.mark.timeout(120)
def test_two_thousand_keys_are_paged_sorted_and_found(
    browser: Browser, gateway: Demo, many_keys: None
) -> None:
    open_page(browser, gateway, "keys")
    browser.wait_for("/of 200[0-9]$/m.test(document.querySelector('.pager span').textContent)")
    assert browser.run("return document.querySelectorAll('main tbody tr').length") == 50
    browser.run("document.querySelector('main tbody tr:last-child button').focus()")
    tab_to(browser, "Next page")
    browser.press(ENTER, ENTER)
    assert "101 to 150 of" in browser.text(".pager")
    assert focused(browser) == "Next page"
    browser.run("document.querySelector('main th button').focus()")
    tab_to(browser, "Find", back=True)
    browser.press(*"SERVICE 1999")
    assert browser.run("return document.querySelectorAll('main tbody tr').length") == 1
    assert browser.text("main tbody td:nth-child(2)") == "k01999"
    assert browser.run("return document.querySelector('.pager').hidden")
    browser.run("document.querySelector('main input').value = ''")
    browser.press("k", BACKSPACE)  # typed and taken back
    tab_to(browser, "Name")
    browser.press(ENTER, ENTER)
    assert (
        browser.run("return document.querySelector('th').getAttribute('aria-sort')") == "descending"
    )
    assert browser.text("main tbody tr").startswith("service 1999")
    assert "Sorted by Name" in browser.run("return document.querySelector('#said').textContent")
    try:
        browser.resize(360, 740, is_dark=True)
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        assert "Tenant" in browser.run(
            "return getComputedStyle(document.querySelector('td:nth-child(4)'), '::before').content"
        )
        tab_to(browser, "New key", back=True)
        browser.press(ENTER)
        browser.wait_for("document.querySelector('dialog[open]')")
        assert browser.run("return document.querySelector('dialog').scrollWidth") <= 360
        # what is wrong is shown even where it was folded away
        browser.run("document.querySelector('dialog details input[max]').value = '0'")
        browser.press("x", ENTER)
        browser.wait_for("document.querySelector('dialog details').open")
        browser.press(ESCAPE)
        browser.wait_for("!document.querySelector('dialog')")
        assert focused(browser) == "New key"
    finally:
        browser.resize(1280, 900)
    assert errors_in(browser) == []


@needs_browser
@pytest.mark.timeout(120)
def test_what_the_ledger_and_the_counters_say(
    browser: Browser, gateway: Demo, client: httpx.Client
) -> None:
    add_past(gateway)
    add_counters(gateway)
    with open_ledger(str(gateway.ledger)) as ledger:
        ledger.add([_hostile_escalation()])
    gateway.call(gateway.upstreams[1].down())
    open_page(browser, gateway, "budgets")
    browser.wait_for("document.querySelectorAll('.burn svg').length >= 4")
    assert "feature support-chat" in browser.text("main")
    told = browser.run("return document.querySelector('.burn svg').getAttribute('aria-label')")
    assert re.search(r"[\d.]+ USD of 12 USD left; at this pace", told), told
    summary = "document.querySelectorAll('.budget')[5].querySelector('summary')"
    assert not browser.run(f"return {summary}.parentElement.open")
    browser.run(f"{summary}.focus()")
    browser.press(ENTER)
    browser.wait_for(f"{summary}.parentElement.querySelector('svg')")

    for part, words in (
        ("limits", "No request has come to a limit yet"),
        ("routes", "own-b"),
        ("escalations", "mean logprob"),
        ("spend", "support-chat"),
    ):
        chord(browser, SHIFT, TAB)
        browser.run("location.hash = arguments[0]", part)
        browser.wait_for(f"document.querySelector('main').innerText.includes('{words}')")
        for width, is_dark in ((360, True), (1280, False)):
            browser.resize(width, 900, is_dark=is_dark)
            assert browser.run("return document.documentElement.scrollWidth") <= width, part
        check_nothing_is_unnamed_or_foreign(browser, gateway)
    assert browser.run("return document.querySelectorAll('.bars rect').length") > 20
    browser.run("location.hash = 'escalations'")
    browser.wait_for("document.querySelector('main').innerText.includes('onerror')")
    assert HOSTILE in browser.text("main")
    assert browser.text("main tbody tr").split("\t")[0] == "support-chat"
    rows = "document.querySelectorAll('main table')[1].tBodies[0].rows.length"
    tab_to(browser, "Since")
    browser.press(DOWN)  # the last 30 days
    browser.wait_for(f"{rows} == 100")
    tab_to(browser, "Older ones", most=120)
    browser.press(ENTER)
    browser.wait_for(f"{rows} > 100")
    browser.run("location.hash = 'routes'")
    browser.wait_for("document.querySelector('main').innerText.includes('not well')")
    assert errors_in(browser) == []


def _hostile_escalation() -> EscalationRecord:
    return EscalationRecord(
        request_id="hostile",
        number=0,
        time_ns=time.time_ns(),
        feature=HOSTILE[:64],
        rule="model:chat",
        judge="sure",
        reason=HOSTILE,
        answer_sha256="",
        cheap_tier="small",
        cheap_backend="own-a",
        cheap_model=HOSTILE[:64],
        cheap_cost_nano=1,
        dear_tier="large",
        dear_backend="cloud",
        dear_model="frontier",
        dear_status="ok",
        dear_cost_nano=2,
        difference_nano=1,
    )


@needs_browser
@pytest.mark.timeout(120)
def test_the_playground_explains_sends_and_shows_attempts(browser: Browser, gateway: Demo) -> None:
    unsure = Answer(tokens=("Maybe ", HOSTILE), logprob=-1.4)
    gateway.upstreams[0].answer = gateway.upstreams[1].answer = unsure
    gateway.upstreams[2].answer = Answer(tokens=("Forty", "-two ", HOSTILE))
    seen = len(gateway.upstreams[2].seen)
    open_page(browser, gateway, "playground")
    browser.wait_for("document.querySelector('datalist').children.length")
    tab_to(browser, "Gateway key")
    browser.press(*"a-wrong-key")
    tab_to(browser, "Model")
    browser.run("document.activeElement.select()")
    browser.press(*"chat")
    tab_to(browser, "Feature")
    browser.press(*"support-chat")
    tab_to(browser, "Message")
    browser.press(*"Six by seven?")
    tab_to(browser, "Explain, do not send")
    browser.press(ENTER)
    browser.wait_for("document.querySelector('main .error').textContent")
    assert "not valid" in browser.text("main .error")
    assert browser.text("#state") == "connected"
    tab_to(browser, "Gateway key", back=True)
    browser.run("document.activeElement.select()")
    browser.press(*CALLER_KEY)
    tab_to(browser, "Explain, do not send")
    browser.press(ENTER)
    browser.wait_for("document.querySelector('[aria-label=\"Where it goes\"] dl')")
    plan = browser.text("[aria-label='Where it goes']")
    for words in ("model:chat", "small judged by sure", "own-a/smollm2", "cloud/frontier"):
        assert words in plan
    assert re.search(r"At the most\s+0\.0\d+ USD", plan), plan
    assert "key demo, tenant acme, team web, feature support-chat" in plan
    assert len(gateway.upstreams[2].seen) == seen

    for is_stream in (True, False):
        tab_to(browser, "Send", back=True)
        browser.press(ENTER)
        browser.wait_for(
            "document.querySelectorAll('[aria-label=\"What became of it\"] tbody tr').length == 2"
        )
        result = browser.text("[aria-label='What became of it']")
        assert f"Forty-two {HOSTILE}" in browser.text(".answer")
        assert (
            browser.run("return document.querySelector('.answer').getAttribute('aria-busy')")
            == "false"
        )
        assert re.search(r"Answered by\s+cloud/frontier", result), result
        assert re.search(r"Escalation\s+escalated", result), result
        assert re.search(r"Cost\s+0\.000\d+ USD for 2 attempts", result), result
        rows = browser.run(
            "return [...document.querySelectorAll('[aria-label=\"What became of it\"] tbody tr')]"
            ".map(row => row.innerText)"
        )
        assert re.search(r"small.*smollm2.*escalated.*sure.*-1\.4.*below", rows[0]), rows
        assert re.search(r"large.*cloud/frontier.*ok", rows[1]), rows
        assert "Answered in" in browser.run("return document.querySelector('#said').textContent")
        if is_stream:
            tab_to(browser, "Stream the answer", back=True)
            browser.press(SPACE)
    assert gateway.upstreams[2].seen[-1].body["stream"] is False
    everything = "return document.documentElement.outerHTML + JSON.stringify(sessionStorage)"
    assert CALLER_KEY not in browser.run(everything)
    check_nothing_is_unnamed_or_foreign(browser, gateway)
    assert errors_in(browser, "400") == []

    tab_to(browser, "Reload configuration", back=True)
    browser.press(ENTER)
    browser.wait_for("document.querySelector('#notice').innerText.includes('read anew')")
    gateway.gateway.path.write_text("backends: {}\n")
    browser.press(ENTER)
    browser.wait_for("document.querySelector('#notice').innerText.includes('stays as it was')")
    assert "backends" in browser.text("#notice")
    tab_to(browser, "Forget key")
    browser.press(ENTER)
    browser.wait_for("document.activeElement.id == 'key'")
    assert browser.run("return sessionStorage.length") == 0
    assert browser.run("return document.querySelector('main').childElementCount") == 0
    assert errors_in(browser, "400") == []
    browser.open("about:blank")


@needs_browser
@pytest.mark.timeout(120)
def test_without_a_ledger_and_without_an_answer(browser: Browser, tmp_path: Path) -> None:
    with demo(tmp_path, has_ledger=False) as gateway:
        open_page(browser, gateway, "keys")
        for part in ("keys", "escalations", "spend", "audit"):
            browser.run("location.hash = arguments[0]", part)
            browser.wait_for("document.querySelector('main').innerText.includes('keeps no ledger')")
            browser.run("document.querySelector('main').replaceChildren()")
        browser.run("location.hash = 'playground'")
        browser.wait_for("document.querySelector('datalist')?.children.length")
        for name, text in (("Gateway key", CALLER_KEY), ("Message", "Hello")):
            tab_to(browser, name)
            browser.press(*text)
        tab_to(browser, "Send")
        browser.press(ENTER)
        browser.wait_for("document.querySelectorAll('main tbody tr').length == 1")
        browser.run("location.hash = 'limits'")
        browser.wait_for("document.querySelector('main').innerText.includes('per-key')")
        browser.run("location.hash = 'budgets'")
        browser.wait_for("document.querySelectorAll('.burn, .budget .say').length >= 3")
        assert "has no past" in browser.text("main")
        assert errors_in(browser) == []
    browser.run("location.hash = 'routes'")
    browser.wait_for("document.querySelector('#state').textContent == 'no answer'")
    assert "does not answer" in browser.text("#notice")
    assert errors_in(browser, "ERR_") == []
    browser.open("about:blank")
