"""Make docs/images/gateway-admin.png: a gateway with weeks behind it, four parts of its admin page.

    PYTHONPATH=. python scripts/gateway_admin_screenshot.py

The gateway, its ledger, budgets and judge are real; the backends are the tests' own, which say what
they are told to, and the weeks are made up. Needs chromium, chromium-driver and Pillow.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import httpx
from PIL import Image

from tests.browser import Browser, browsing
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

SIZE = (1120, 800)
GAP = 16
ENTER = "\ue007"
UNSURE = Answer(tokens=("Hm", ", I", " think", " 41", "."), logprob=-1.37)
SURE = Answer(tokens=("Six", " by", " seven", " is", " 42", "."))


def fill(gateway: Demo) -> None:
    """A past, and some requests of now."""
    add_past(gateway)
    add_counters(gateway)
    add_keys(gateway, 24)
    headers = {"Authorization": f"Bearer {CALLER_KEY}", "X-Octavo-Feature": "support-chat"}
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}
    with httpx.Client(base_url=gateway.url, headers=headers, trust_env=False) as client:
        for _ in range(5):
            client.post("/v1/chat/completions", json=body).raise_for_status()
    for upstream, answer in zip(gateway.upstreams, (UNSURE, UNSURE, SURE), strict=True):
        upstream.answer = answer


def ask(browser: Browser) -> None:
    """A question to the small model, which it does not know the answer of."""
    browser.wait_for("document.querySelector('datalist').children.length")
    for selector, text in (
        ("main input[type=password]", CALLER_KEY),
        ("input[list]", "chat"),
        ("textarea[required]", "What is six by seven?"),
    ):
        browser.run(
            "const e = document.querySelector(arguments[0]); e.focus(); e.select()", selector
        )
        browser.press(*text)
    browser.run("document.querySelector('main button.primary').click()")
    browser.wait_for("document.querySelectorAll('main tbody tr').length == 2")
    browser.run("document.querySelectorAll('main .card')[2].scrollIntoView({block: 'end'})")


def picture(browser: Browser, part: str, ready: str) -> Image.Image:
    """One part of the page."""
    browser.run("document.activeElement.blur(); location.hash = arguments[0]", part)
    browser.wait_for(f"location.hash == '#{part}' && ({ready})")
    if part == "playground":
        ask(browser)
    time.sleep(1)
    browser.run("document.activeElement.blur()")
    return Image.open(io.BytesIO(browser.screenshot())).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/gateway-admin.png"))
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    width, height = SIZE
    with (
        tempfile.TemporaryDirectory() as folder,
        demo(Path(folder)) as gateway,
        browsing(Path(folder)) as browser,
    ):
        fill(gateway)
        browser.resize(width, height, is_dark=args.dark)
        browser.open(f"{gateway.url}/admin")
        browser.wait_for("document.activeElement.id == 'key'")
        browser.press(*ADMIN_KEY, ENTER)
        browser.wait_for("document.querySelector('#state').textContent == 'connected'")
        shots = [
            picture(browser, part, ready)
            for part, ready in (
                ("budgets", "document.querySelectorAll('.burn svg').length >= 4"),
                ("escalations", "document.querySelectorAll('main tbody tr').length > 20"),
                ("spend", "document.querySelector('.bars')"),
                ("playground", "document.querySelector('datalist')"),
            )
        ]
    whole = Image.new("RGB", (2 * width + GAP, 2 * height + GAP), "#8a93a0")
    for index, shot in enumerate(shots):
        whole.paste(shot, ((index % 2) * (width + GAP), (index // 2) * (height + GAP)))
    few = whole.quantize(128, kmeans=3, dither=Image.Dither.NONE)  # a third of the size
    few.save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
