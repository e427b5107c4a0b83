"""Make docs/images/dashboard.png: load a running server for some minutes, and take a picture.

    octavo serve smollm2 --price-per-device-hour 0.40 &
    PYTHONPATH=. python scripts/dashboard_screenshot.py --seconds 600

Needs chromium, chromium-driver and Pillow.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import math
import random
import tempfile
import time
from pathlib import Path

import httpx
from PIL import Image

from tests.browser import browsing

RULES = "You work for a shop that sells tea. Be brief and kind, and never promise a refund. " * 6
FEATURES = {
    "support-chat": (5, 60, RULES),
    "summarize": (2, 40, "Summarize what follows in one sentence. "),
    "search-rewrite": (4, 12, "Rewrite the question as a search. "),
    "agent/plan": (2, 90, RULES + "Plan the steps. "),
    "": (1, 30, ""),
}
WORDS = [
    "green",
    "black",
    "oolong",
    "white",
    "rooibos",
    "mint",
    "cup",
    "kettle",
    "leaf",
    "shop",
    "order",
    "parcel",
    "late",
    "broken",
]


async def ask(client: httpx.AsyncClient, model: str, chance: random.Random) -> None:
    weights = [weight for weight, _, _ in FEATURES.values()]
    [(feature, (_, num_tokens, rules))] = chance.choices(list(FEATURES.items()), weights)
    question = " ".join(chance.choices(WORDS, k=chance.choice((8, 20, 60, 150))))
    body = {
        "model": model,
        "messages": [{"role": "system", "content": rules}, {"role": "user", "content": question}],
        "max_tokens": max(4, round(chance.gauss(num_tokens, num_tokens / 3))),
        "stream": True,
    }
    headers = {"X-Octavo-Feature": feature} if feature else {}
    try:
        async with client.stream(
            "POST", "/v1/chat/completions", json=body, headers=headers
        ) as answer:
            async for _ in answer.aiter_lines():
                if chance.random() < 0.0005:
                    return  # somebody goes away
    except httpx.HTTPError as error:
        print(error)


async def load(url: str, seconds: float, most: int) -> None:
    """So many requests at a time as the hour has it: up and down, with a rush now and then."""
    begin, chance = time.monotonic(), random.Random(7)
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        open_requests: set[asyncio.Task[None]] = set()
        while (now := time.monotonic() - begin) < seconds:
            wave = 0.5 - 0.4 * math.cos(now / 50)
            wanted = max(1, round(most * wave)) + (most if now % 170 > 150 else 0)
            while len(open_requests) < wanted:
                task = asyncio.create_task(ask(client, model, chance))
                open_requests.add(task)
                task.add_done_callback(open_requests.discard)
            await asyncio.sleep(0.2)
        for task in open_requests:
            task.cancel()
        await asyncio.gather(*open_requests, return_exceptions=True)


def picture(url: str, path: Path, width: int, *, is_dark: bool) -> None:
    """The page down to the slowest requests."""
    with tempfile.TemporaryDirectory() as folder, browsing(Path(folder)) as browser:
        browser.resize(width, 1400, is_dark=is_dark)
        browser.open(f"{url}/dashboard")
        browser.wait_for("document.querySelector('#slowest table')")
        browser.wait_for("document.querySelector('#spend table')")
        browser.wait_for("!/(TTFT P95|Prefix hits)\\s*\\u2013/.test(tiles.innerText)", 300)
        bottom = browser.run(
            "const row = document.querySelectorAll('#slowest tr')[8];"
            "return (row ?? document.querySelector('#slowest')).getBoundingClientRect().bottom"
        )
        browser.resize(width, round(bottom) + 1, is_dark=is_dark)
        time.sleep(3)
        shot = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    few = shot.quantize(256, kmeans=3, dither=Image.Dither.NONE)  # a third of the size
    few.save(path, optimize=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--most", type=int, default=8, help="requests at a time")
    parser.add_argument("--out", type=Path, default=Path("docs/images/dashboard.png"))
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    work = asyncio.create_task(load(args.url, args.seconds, args.most))
    await asyncio.sleep(max(0.0, args.seconds - 40))
    await asyncio.to_thread(picture, args.url, args.out, args.width, is_dark=args.dark)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")
    work.cancel()


if __name__ == "__main__":
    asyncio.run(main())
