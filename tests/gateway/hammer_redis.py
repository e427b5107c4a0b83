"""One of several gateways that count in the same Redis; run by `test_limits_redis`.

Prints how many requests it was let in with, and the most that it saw running at a time anywhere.
"""

from __future__ import annotations

import asyncio
import sys

from redis.asyncio import Redis

from octavo.errors import RateLimitedError
from octavo.gateway.config_limits import Limit, LimitsSection
from octavo.gateway.limits import open_limits
from octavo.gateway.model import Call, KeyInfo

NUM_CALLS = 100


async def main(url: str) -> None:
    section = LimitsSection(
        rules={
            "requests": Limit(requests_per_minute=100, models=("many",)),
            "places": Limit(concurrency=3, models=("few",), queue_s=20),
        },
        store="redis",
        redis_timeout_s=10,
    )
    limits = open_limits(section, url)
    shared = Redis.from_url(url)
    num_in = most = 0

    def call_of(model: str) -> Call:
        return Call(
            request_id="r", arrived=0.0, route="chat", path="/v1/chat/completions", model=model,
            body={}, key=KeyInfo(key_id="k"),
        )  # fmt: skip

    async def one() -> None:
        nonlocal num_in
        try:
            permit = await limits.admit(call_of("many"))
        except RateLimitedError:
            return
        num_in += 1
        await permit.settle(0)

    async def place() -> None:
        nonlocal most
        permit = await limits.admit(call_of("few"))
        most = max(most, await shared.incr("running"))
        await asyncio.sleep(0.002)
        await shared.decr("running")
        await permit.settle(0)

    await shared.incr("ready")
    while int(await shared.get("ready")) < 4:  # noqa: ASYNC110 -- of other processes
        await asyncio.sleep(0.01)
    await asyncio.gather(*(one() for _ in range(NUM_CALLS)))
    await asyncio.gather(*(place() for _ in range(10)))
    await limits.close()
    await limits.store.close()
    await shared.aclose()
    print(num_in, most)


asyncio.run(main(sys.argv[1]))
