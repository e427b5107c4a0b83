"""Two real engines and a cloud behind one URL, all of them processes or servers of their own: rules
route, a judge escalates, and records and costs are right to the last unit.
"""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from octavo.gateway.key_store import KeyStore
from octavo.gateway.model import KeyInfo
from octavo.ledger.database import Database
from octavo.ledger.store import open_ledger
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.processes import process

if TYPE_CHECKING:
    from pathlib import Path

SMALL_RATE, MID_RATE = Decimal("0.9"), Decimal("1.8")
CLOUD_NANO = 12 * 2500 + 8 * 1250 + 5 * 10_000
"""The fake cloud says 20 tokens in, 8 of them cached, and 5 out."""

CONFIG = """
server: {{uds: {folder}/gateway.sock}}
ledger: {{url: "sqlite:///{ledger}"}}
backends:
  near:
    url: unix:{folder}/small.sock
    kind: octavo
    metered: true
    models: {{small: {{price: {{device_hour: 0.9}}}}}}
  mid:
    url: unix:{folder}/mid.sock
    kind: octavo
    models: {{mid: {{price: {{device_hour: 1.8}}}}}}
  cloud:
    url: {cloud}
    api_key: ${{CLOUD_KEY}}
    models: {{big: {{price: {{input: 2.5, cached_input: 1.25, output: 10}}}}}}
judges:
  has-number: {{kind: regex, must: ["[0-9]{{7}}"]}}
  sure: {{kind: logprob, mean: -100}}
tiers:
  small: {{targets: [near/small]}}
  small-number: {{targets: [near/small], judge: has-number}}
  small-sure: {{targets: [near/small], judge: sure}}
  mid: {{targets: [mid/mid]}}
  large: {{targets: [cloud/big]}}
rules:
  - {{name: code, when: {{features: [code]}}, tiers: [large]}}
models:
  classify-intent: {{tiers: [small]}}
  complete: {{tiers: [mid]}}
  number: {{tiers: [small-number, large]}}
  answer: {{tiers: [small-sure, large]}}
"""


def make_key(url: str) -> str:
    with contextlib.closing(KeyStore(url)) as store:
        info = KeyInfo(key_id="", tenant="acme", features=("support", "autocomplete", "code"))
        return store.create(info, actor="test")[1]


def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    connection = Database(url).connect()
    try:
        return [tuple(row) for row in connection.rows(sql)]
    finally:
        connection.close()


def nano(rate: Decimal, device_ns: int) -> int:
    return int((rate * 10**9 * device_ns / (3600 * 10**9)).to_integral_value("ROUND_HALF_UP"))


@pytest.mark.timeout(180)
async def test_rules_route_the_judge_escalates_and_the_costs_are_right(
    smollm2_path: Path, gemma_path: Path, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.db"
    common = ("--max-model-len", "512", "--num-threads", "1", "--log-level", "warning")
    async with contextlib.AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(FakeUpstream(requires_key="sk-cloud"))
        key = make_key(f"sqlite:///{ledger}")
        config = tmp_path / "gateway.yaml"
        config.write_text(CONFIG.format(folder=tmp_path, ledger=ledger, cloud=cloud.url))
        for path, name, rate, where in (
            (smollm2_path, "small", SMALL_RATE, f"sqlite:///{ledger}"),
            (gemma_path, "mid", MID_RATE, "none"),
        ):
            socket = tmp_path / f"{name}.sock"
            await stack.enter_async_context(
                process(
                    "serve", str(path), "--uds", str(socket), "--served-model-name", name,
                    "--ledger", where, "--price-per-device-hour", str(rate), *common,
                    socket=socket, log=tmp_path / f"{name}.log",
                )
            )  # fmt: skip
        socket = tmp_path / "gateway.sock"
        await stack.enter_async_context(
            process("gateway", "--config", str(config), socket=socket, log=tmp_path / "gateway.log")
        )
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        http = httpx.AsyncClient(transport=transport, base_url="http://octavo")
        client = openai.AsyncOpenAI(
            api_key=key, base_url="http://octavo/v1", http_client=http, max_retries=0
        )
        stack.push_async_callback(client.close)
        await ask_all(client)
        # The caller's key and the engines' own matters do not go to the cloud.
        for seen in cloud.seen:
            assert seen.headers["authorization"] == "Bearer sk-cloud"
            assert not [name for name in seen.headers if name.startswith("x-octavo")]
    check_records(f"sqlite:///{ledger}")


async def ask_all(client: openai.AsyncOpenAI) -> None:
    async def chat(model: str, **more: Any) -> str:
        headers = {"X-Octavo-Feature": more.pop("feature", "support")}
        answer = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8,
            temperature=0, extra_headers=headers | {"X-Request-Id": f"is-{more.pop('called')}"},
            **more,
        )  # fmt: skip
        return answer.choices[0].message.content or ""

    assert await chat("classify-intent", called="small")
    completed = await client.completions.create(
        model="complete", prompt="The capital of France is", max_tokens=4, temperature=0,
        extra_headers={"X-Octavo-Feature": "autocomplete", "X-Request-Id": "is-mid"},
    )  # fmt: skip
    assert completed.choices[0].text.strip()
    assert await chat("number", called="escalated") == "The answer is 42."
    assert await chat("answer", called="sure") not in ("", "The answer is 42.")
    assert await chat("answer", called="rule", feature="code") == "The answer is 42."
    stream = await client.chat.completions.create(
        model="number", messages=[{"role": "user", "content": "Say hello."}], max_tokens=8,
        stream=True, extra_headers={"X-Octavo-Feature": "support", "X-Request-Id": "is-stream"},
    )  # fmt: skip
    text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    assert text == "The answer is 42."


def check_records(url: str) -> None:
    attempts = rows(
        url,
        "SELECT request_id, number, tier, backend, model, status, device_ns, cost_nano, "
        "next_cost_nano, num_input_tokens, num_cached_tokens, num_output_tokens FROM attempts "
        "ORDER BY time_ns",
    )
    ways = [(row[0].split(".")[0], *row[2:6]) for row in attempts]
    assert ways == [
        ("is-small", "small", "near", "small", "ok"),
        ("is-mid", "mid", "mid", "mid", "ok"),
        ("is-escalated", "small-number", "near", "small", "escalated"),
        ("is-escalated", "large", "cloud", "big", "ok"),
        ("is-sure", "small-sure", "near", "small", "ok"),
        ("is-rule", "large", "cloud", "big", "ok"),
        ("is-stream", "small-number", "near", "small", "escalated"),
        ("is-stream", "large", "cloud", "big", "ok"),
    ]
    for _, _, _, backend, _, _, device_ns, cost, next_cost, num_in, num_cached, num_out in attempts:
        if backend == "cloud":
            assert (num_in, num_cached, num_out) == (20, 8, 5)
            assert cost == CLOUD_NANO
        else:
            assert device_ns > 0
            assert cost == nano(SMALL_RATE if backend == "near" else MID_RATE, device_ns)
        if next_cost is not None:
            uncached = num_in - num_cached
            exact = Decimal(uncached * 2500 + num_cached * 1250 + num_out * 10_000)
            assert next_cost == exact
    with open_ledger(url) as ledger:
        usage = {totals.key: totals for totals in ledger.totals(["backend", "model"])}
        [hybrid] = ledger.hybrid_totals(["feature"])
        escalations = ledger.escalations()
    # The engine that meters into this ledger said itself what the gateway says of it.
    for key, backend in ((("octavo", "small"), "near"), (("mid", "mid"), "mid")):
        mine = [row for row in attempts if row[3] == backend]
        totals = usage.pop(key)
        assert totals.num_requests == len(mine)
        assert totals.prefill_ns + totals.decode_ns == sum(row[6] for row in mine)
        assert totals.cost_nano == sum(row[7] for row in mine)
        assert totals.num_output_tokens == sum(row[11] for row in mine)
    assert usage.pop(("cloud", "big")).cost_nano == 3 * CLOUD_NANO
    assert not usage
    assert (hybrid.num_passed, hybrid.num_escalated) == (1, 2)
    assert hybrid.dear_cost_nano == 2 * CLOUD_NANO
    for escalation in escalations:
        assert (escalation.judge, escalation.cheap_backend) == ("has-number", "near")
        assert escalation.dear_backend == "cloud"
        assert len(escalation.answer_sha256) == 64
        assert escalation.difference_nano == CLOUD_NANO - escalation.cheap_cost_nano
    # What the callers know their requests by finds the engine's records.
    known = {
        row[0].split(".")[0]
        for row in rows(url, "SELECT parent_id FROM usage WHERE backend = 'octavo'")
    }
    assert {row[0] for row in rows(url, "SELECT DISTINCT tenant FROM attempts")} == {"acme"}
    assert known == {"is-small", "is-escalated", "is-sure", "is-stream"}
