"""Two gateway processes, one budget: 200 requests at once, and money for 50 of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.processes import process
from tests.gateway.redis_server import BINARY, RedisServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ledger.postgres import PostgresServer

NUM_PAID = 50
# The fake backend says five tokens, which the requests are bounded by: what is reserved is used.
CONFIG = """
server: {{uds: {socket}}}
{ledger}
{redis}
backends:
  cloud:
    url: {cloud}
    probe: {{interval: 0}}
    models: {{slow: {{price: {{input: 0, output: 2000}}}}}}
keys: {{required: false}}
budgets:
  store: {store}
  rules: {{all: {{cost: 0.50, period: total, per: []}}}}
"""


@pytest.mark.parametrize("store", ["ledger-sqlite", "ledger-postgresql", "redis"])
async def test_two_processes_spend_one_budget(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(FakeUpstream())
        ledger = redis = ""
        if store == "redis":
            if BINARY is None:
                pytest.skip("Redis is not installed")
            server = RedisServer()
            stack.callback(server.remove)
            redis = f"redis_url: {server.url}"
        elif store == "ledger-postgresql":
            postgres: PostgresServer = request.getfixturevalue("postgres")
            ledger = f'ledger: {{url: "{postgres.new_ledger()}"}}'
        else:
            ledger = f'ledger: {{url: "sqlite:///{tmp_path}/ledger.db"}}'
        clients = []
        for name in ("a", "b"):
            socket = tmp_path / f"{name}.sock"
            config = tmp_path / f"{name}.yaml"
            config.write_text(
                CONFIG.format(
                    socket=socket, cloud=cloud.url, ledger=ledger, redis=redis,
                    store=store.partition("-")[0],
                )
            )  # fmt: skip
            await stack.enter_async_context(
                process(
                    "gateway", "--config", str(config), socket=socket, log=tmp_path / f"{name}.log"
                )
            )
            transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits())
            client = httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=60)
            clients.append(await stack.enter_async_context(client))
        body = {"model": "slow", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
        answers = await asyncio.gather(
            *(clients[i % 2].post("/v1/chat/completions", json=body) for i in range(200))
        )
        codes = Counter(answer.status_code for answer in answers)
        assert codes == {200: NUM_PAID, 429: 200 - NUM_PAID}
        assert len(cloud.seen) == NUM_PAID
        for answer in answers:
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "budget_exceeded"
        # And none of them spent more than there was, nor left any.
        late = await clients[0].post("/v1/chat/completions", json=body)
        assert late.status_code == 429
    assert NUM_PAID * 5 * Decimal(2000) / 10**6 == Decimal("0.5")
