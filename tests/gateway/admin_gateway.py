"""A whole gateway in a thread of its own, with fake backends, budgets, a judge and a ledger with a
past: for the admin page in a browser, and its screenshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from octavo.gateway.key_store import KeyStore
from octavo.gateway.model import KeyInfo
from octavo.ledger.record import AttemptRecord, EscalationRecord, UsageRecord
from octavo.ledger.store import open_ledger
from tests.gateway.fake_answers import Answer
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.running import Running, running

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from octavo.ledger.record import Entry

T = TypeVar("T")

ADMIN_KEY = "an-admin-key-of-the-page"
CALLER_KEY = "a-callers-key-of-the-page"
HOUR_NS = 3600 * 10**9

CONFIG = """
keys:
  inline:
    - {{id: demo, name: playground, key: {caller}, tenant: acme, team: web, features: ['*']}}
admin: {{keys: {{root: {admin}}}}}
{ledger}
backends:
  own-a:
    kind: octavo
    url: {own}
    models: {{smollm2: {{context_length: 2048, price: {{device_hour: 0.40}}}}}}
    probe: {{interval: 0.5}}
  own-b:
    kind: octavo
    url: {second}
    models: {{smollm2: {{context_length: 2048, price: {{device_hour: 0.40}}}}}}
    probe: {{interval: 0.5}}
  cloud:
    url: {cloud}
    models: {{frontier: {{context_length: 128000, price: {{input: 2.5, output: 10}}}}}}
    probe: {{interval: 0}}
tiers:
  small: {{targets: [own-a/smollm2, own-b/smollm2], judge: sure}}
  large: {{targets: [cloud/frontier]}}
models:
  chat: {{tiers: [small, large], description: small first}}
  best: {{tiers: [large], max_cost: 0.05}}
rules:
  - {{name: long-prompts, when: {{min_prompt_tokens: 1500}}, tiers: [large]}}
  - {{name: agents-plan, when: {{features: ['agent/*'], has_tools: true}}, tiers: [large]}}
judges:
  sure: {{kind: all, of: [confident, no-refusal]}}
  confident: {{kind: logprob, mean: -0.6}}
  no-refusal: {{kind: refusal}}
limits:
  rules:
    per-key: {{requests_per_minute: 600, tokens_per_minute: 100000, concurrency: 16}}
    gold: {{requests_per_minute: 6000, holds_for: named}}
budgets:
  rules:
    feature-month: {{cost: 12, period: month, per: [feature]}}
    tenant-day: {{cost: 2, tokens: 3000000, period: day, per: [tenant]}}
    team-month: {{gpu_hours: 3, period: month, per: [team], kind: soft}}
  {store}
"""


@dataclass
class Demo:
    """What runs.

    Attributes:
        url: of the gateway.
        upstreams: own-a, own-b and cloud.
        store: of keys.
        ledger: its path.
        gateway: itself.
        call: runs a coroutine in its loop.
    """

    url: str
    upstreams: list[FakeUpstream]
    store: KeyStore
    ledger: Path
    gateway: Running
    call: Callable[[Coroutine[Any, Any, Any]], Any]


@contextlib.contextmanager
def demo(folder: Path, *, has_ledger: bool = True) -> Iterator[Demo]:
    """Run it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stack = contextlib.AsyncExitStack()

    def call(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    path = folder / "ledger.db"
    try:
        gateway, upstreams = call(_start(stack, folder, path if has_ledger else None))
        store = KeyStore(str(path))
        try:
            yield Demo(gateway.url, upstreams, store, path, gateway, call)
        finally:
            store.close()
    finally:
        call(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


async def _start(
    stack: contextlib.AsyncExitStack, folder: Path, ledger: Path | None
) -> tuple[Running, list[FakeUpstream]]:
    sure = Answer(logprob=-0.2)
    upstreams = [
        await stack.enter_async_context(upstream)
        for upstream in (
            FakeUpstream(is_octavo=True, answer=sure),
            FakeUpstream(is_octavo=True, answer=sure),
            FakeUpstream(answer=Answer(tokens=("Forty", "-two", "."))),
        )
    ]
    own, second, cloud = (upstream.url for upstream in upstreams)
    text = CONFIG.format(
        admin=ADMIN_KEY,
        caller=CALLER_KEY,
        own=own,
        second=second,
        cloud=cloud,
        ledger="" if ledger is None else f"ledger: {{url: {ledger}}}",
        store="store: memory" if ledger is None else "store: ledger",
    )
    gateway = await stack.enter_async_context(running(folder, text))
    stack.push_async_callback(_end, gateway)
    return gateway, upstreams


async def _end(gateway: Running) -> None:
    """Let connections go that browsers keep, before the loop that has them stops."""
    gateway.gateway.http.should_exit = True
    serving = gateway.gateway._serving
    assert serving is not None
    await asyncio.wait({serving}, timeout=5)


def add_keys(demo: Demo, num: int) -> None:
    """Many keys at once, as a migration would: `create` waits for the disk with each."""
    from octavo.gateway import key_store
    from octavo.gateway.keys import StoredKey, digest_of
    from octavo.ledger.database import Database

    columns = key_store._COLUMNS
    sql = f"INSERT INTO keys ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    connection = Database(str(demo.ledger)).connect()
    rows = []
    for number in range(num):
        info = KeyInfo(key_id=f"k{number:05}", name=f"service {number}", tenant=f"t{number % 40}")
        key = StoredKey(info=info, digest=digest_of(str(number).encode()), created_ns=number)
        rows.append(key_store._row(key, time.time_ns()))
    with connection.transaction():
        connection.execute_many(sql, rows)
    connection.close()


def add_past(demo: Demo, days: int = 20, *, seed: int = 7) -> None:
    """Weeks of requests and escalations."""
    chance = random.Random(seed)
    now = time.time_ns()
    features = {"support-chat": 6, "summarize": 3, "agent/plan": 4, "search-rewrite": 2, "": 1}
    entries: list[Entry] = []
    for number in range(days * 24 * 3):
        ended = now - int(number / 3 * HOUR_NS) - chance.randrange(HOUR_NS // 4)
        [feature] = chance.choices(list(features), list(features.values()))
        tenant = chance.choice(("acme", "acme", "globex", "initech"))
        is_dear = chance.random() < 0.3
        cost = chance.randrange(10**7, 9 * 10**7) if is_dear else chance.randrange(10**5, 10**7)
        fields = {"feature": feature, "tenant": tenant, "key": "demo"}
        num_input, num_output = chance.randrange(500, 9000), chance.randrange(50, 900)
        entries.append(
            UsageRecord(
                request_id=f"past-{number}",
                time_ns=ended,
                route="/v1/chat/completions",
                backend="cloud" if is_dear else "own-a",
                model="frontier" if is_dear else "smollm2",
                prefill_ns=0 if is_dear else 3 * 10**9,
                decode_ns=0 if is_dear else 9 * 10**9,
                waste_ns=0,
                num_input_tokens=num_input,
                num_cached_tokens=num_input // 3,
                num_output_tokens=num_output,
                e2e_ns=10**9,
                finish_reason="stop",
                hourly_rate_nano=0,
                price_nano=cost,
                **fields,
            )
        )
        if not is_dear:
            entries += _judged(number, ended, cost, fields, chance)
    with open_ledger(str(demo.ledger)) as ledger:
        ledger.add(entries)


def _judged(
    number: int, ended: int, cost: int, fields: dict[str, str], chance: random.Random
) -> list[Entry]:
    score = chance.gauss(-0.45, 0.25)
    is_escalated = score < -0.6
    reason = f"mean logprob {score:.3f} is below -0.6" if is_escalated else ""
    attempt = AttemptRecord(
        request_id=f"past-{number}",
        number=0,
        upstream_id=f"past-{number}",
        time_ns=ended,
        route="/v1/chat/completions",
        rule="model:chat",
        tier="small",
        backend="own-a",
        model="smollm2",
        status="escalated" if is_escalated else "ok",
        http_status=200,
        cost_nano=cost,
        next_cost_nano=cost * 4,
        e2e_ns=10**9,
        reason=reason,
        judge="sure",
        score=score,
        **fields,
    )
    if not is_escalated:
        return [attempt]
    dear = cost * chance.randrange(3, 8)
    return [
        attempt,
        EscalationRecord(
            request_id=attempt.request_id,
            number=0,
            time_ns=ended,
            rule="model:chat",
            judge="sure",
            reason=reason,
            score=score,
            answer_sha256="0" * 64,
            cheap_tier="small",
            cheap_backend="own-a",
            cheap_model="smollm2",
            cheap_cost_nano=cost,
            dear_tier="large",
            dear_backend="cloud",
            dear_model="frontier",
            dear_status="ok",
            dear_cost_nano=dear,
            difference_nano=dear - cost,
            **fields,
        ),
    ]


def add_counters(demo: Demo) -> None:
    """What budgets would have counted of the past."""
    import urllib.parse

    from octavo.gateway.budgets_scope import period_of
    from octavo.ledger.database import Database

    rows = []
    with open_ledger(str(demo.ledger)) as ledger:
        for budget, part in (("feature-month", "feature"), ("tenant-day", "tenant")):
            start, _ = period_of("day" if budget.endswith("day") else "month", time.time_ns())
            for group in ledger.totals((part,), start):
                scope = f"{part}={urllib.parse.quote(group.key[0], safe='')}"
                tokens = group.num_input_tokens + group.num_output_tokens
                used = (group.cost_nano, tokens, group.prefill_ns + group.decode_ns)
                rows.append((budget, scope, start, *used, 0, 0, 0))
    connection = Database(str(demo.ledger)).connect()
    with connection.transaction():
        connection.execute_many(
            "INSERT INTO budget_counters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            rows,
        )
    connection.close()
