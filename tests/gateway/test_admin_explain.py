"""Where a request would go: as a real one does, and nothing is sent, counted or remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from octavo.gateway.absent import NoRecords
from octavo.gateway.admin_recent import RecentAttempts
from octavo.gateway.model import Attempt, Call, Plan, Tokens
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.running import QUICK, Running, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ADMIN_KEY = "an-admin-key-of-the-tests"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
KEYS = {"all": "a-key-that-may-do-all", "few": "a-key-that-may-do-little"}


def config(one: FakeUpstream, two: FakeUpstream) -> str:
    return f"""
admin: {{keys: {{root: {ADMIN_KEY}}}}}
keys:
  inline:
    - {{id: all, key: {KEYS["all"]}, tenant: acme, team: red}}
    - {{id: few, key: {KEYS["few"]}, models: [m], routes: [chat], features: [chat], max_tokens: 9}}
    - {{id: strict, key: a-key-that-needs-bounds, requires_max_tokens: true}}
    - {{id: over, key: a-key-that-has-expired, expires: 2020-01-01T00:00:00Z}}
backends:
  one:
    url: {one.url}
    models: {{m: {{price: {{input: 1, output: 2}}}}, unpriced: {{}}}}{QUICK}
  two:
    url: {two.url}
    models:
      m: {{price: {{input: 1, output: 2}}}}
      dear: {{price: {{input: 30, output: 60}}}}{QUICK}
tiers:
  both: {{targets: [one/m, two/m], judge: long}}
  dear: {{targets: [two/dear]}}
models:
  m: {{tiers: [both, dear], max_cost: 1, deadline_s: 7}}
  split: {{tiers: [both], canaries: [{{name: new, percent: 30, tiers: [dear]}}]}}
  shadowed: {{tiers: [both], shadows: [{{target: two/dear}}]}}
rules:
  - {{name: german, when: {{languages: [de]}}, tiers: [dear]}}
  - {{name: ours, when: {{teams: [red], headers: {{X-Kind: plan*}}}}, tiers: [dear]}}
judges: {{long: {{kind: length, min_chars: 1}}}}
limits: {{rules: {{few: {{requests_per_minute: 3, burst_s: 60}}}}}}
"""


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with (
        FakeUpstream() as one,
        FakeUpstream() as two,
        running(tmp_path, config(one, two)) as gateway,
    ):
        gateway.fakes = (one, two)  # type: ignore[attr-defined]
        yield gateway


async def explain(gateway: Running, text: str = "Hello", **fields: Any) -> Any:
    request = {"key": KEYS["all"], **fields}
    body = request.pop("body", {})
    body = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": text}]} | body
    answer = await gateway.client.post(
        "/admin/v1/explain", json={"body": body, **request}, headers=ADMIN
    )
    return answer.json() if answer.status_code == 200 else (answer.status_code, answer.json())


async def test_it_goes_where_a_real_one_goes_and_is_not_sent(gateway: Running) -> None:
    parts = gateway.gateway.parts
    for number in range(10):
        found = await explain(gateway, f"A prompt, number {number}. " * 300)
        assert found["rule"] == "model:m"
        assert [tier["name"] for tier in found["tiers"]] == ["both", "dear"]
        assert {target["backend"] for target in found["tiers"][0]["targets"]} == {"one", "two"}
    assert len(parts.router.memory) == 0
    assert await parts.limits.state() == []
    assert [fake.seen for fake in gateway.fakes] == [[], []]  # type: ignore[attr-defined]
    headers = {"Authorization": f"Bearer {KEYS['all']}"}
    for number in range(3):  # what replica a real one finds, an explained one finds, too
        text = f"A prompt, number {number}. " * 300
        messages = [{"role": "user", "content": text}]
        before = await explain(gateway, text)
        real = await gateway.chat("m", messages=messages, max_tokens=10, headers=headers)
        after = await explain(gateway, text + "And more.")
        first = [one["tiers"][0]["targets"][0] for one in (before, after)]
        spelt = {f"{target['backend']}/{target['model']}" for target in first}
        assert spelt == {real.headers["x-octavo-target"]}
        assert real.headers["x-octavo-rule"] == before["rule"]
    assert (await gateway.chat("m", headers=headers)).status_code == 429


async def test_what_it_tells_of_the_request_and_its_worst_case(gateway: Running) -> None:
    found = await explain(gateway, headers={"X-Octavo-Feature": "search"}, body={"n": 2})
    call = found["call"]
    assert (call["key"], call["tenant"], call["team"]) == ("all", "acme", "red")
    assert (call["feature"], call["num_choices"], call["max_tokens"]) == ("search", 2, 10)
    assert (found["deadline_s"], found["max_cost"]) == (7.0, "1.000000000")
    prompt = call["num_prompt_tokens"]
    # Of two targets the first may fail and charge for its prompt all the same.
    micro = (2 * prompt * 1 + 20 * 2) + (prompt * 30 + 20 * 60)
    assert found["worst_case"]["cost"] == f"{micro / 1e6:.9f}"
    assert found["worst_case"]["num_tokens"] == 3 * prompt + 2 * 20
    assert found["tiers"][1]["targets"][0]["price"] == {
        "input": "30.000000000",
        "output": "60.000000000",
        "per_request": "0.000000000",
        "currency": "USD",
    }
    assert (await explain(gateway, body={"model": "unpriced"}))["worst_case"] is None
    german = await explain(gateway, "Bitte sag mir, wie das Wetter morgen in der Stadt wird, ja?")
    assert (german["rule"], german["call"]["language"]) == ("german", "de")
    assert (await explain(gateway, headers={"x-kind": "planning"}))["rule"] == "ours"
    other = await explain(gateway, key=KEYS["few"], headers={"X-Octavo-Feature": "search"})
    assert other[0] == 403
    few = await explain(gateway, key=KEYS["few"], body={"max_tokens": 99})
    call = few["call"]
    assert (call["feature"], call["max_tokens"]) == ("chat", 9)  # as a real one
    shadowed = await explain(gateway, body={"model": "shadowed"})
    assert [target["model"] for target in shadowed["shadows"]] == ["dear"]
    health = gateway.gateway.parts.dispatcher.health
    health.states["two"].is_well = False
    assert [
        (target["backend"], target["is_usable"])
        for target in (await explain(gateway))["tiers"][0]["targets"]
    ] == [("one", True)]


async def test_canaries_are_drawn_by_the_requests_id(gateway: Running) -> None:
    rules = [
        (await explain(gateway, body={"model": "split"}, request_id=f"r{number}"))["rule"]
        for number in range(100)
    ]
    assert 15 <= rules.count("model:split/new") <= 45
    again = [
        (await explain(gateway, body={"model": "split"}, request_id=f"r{number}"))["rule"]
        for number in range(0, 100, 9)
    ]
    assert again == rules[::9]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"body": {"model": "none"}}, 404, "model"),
        ({"body": {"model": None}}, 400, "model"),
        ({"body": {"max_tokens": -1}}, 400, "max_tokens"),
        ({"key": "a-key-that-is-wrong"}, 400, "key"),
        ({"key": "ключ"}, 400, "key"),
        ({"key": "a-key-that-has-expired"}, 400, "key"),
        (
            {"key": "a-key-that-needs-bounds", "body": {"max_tokens": None}},
            400,
            "max_completion_tokens",
        ),
        ({"key": KEYS["few"], "body": {"model": "split"}}, 403, "model"),
        ({"route": "somewhere"}, 400, "route"),
        ({"headers": {"X-Kind": "€"}}, 400, "headers"),
        ({"more": 1}, 400, "more"),
    ],
)
async def test_what_would_be_refused_is_refused(
    gateway: Running, fields: dict[str, Any], status: int, param: str | None
) -> None:
    found, body = await explain(gateway, **fields)
    assert (found, body["error"]["param"]) == (status, param), body


async def test_callers_keys_explain_nothing(gateway: Running) -> None:
    body = {"body": {"model": "m", "messages": []}}
    for headers in ({}, {"Authorization": f"Bearer {KEYS['all']}"}):
        answer = await gateway.client.post("/admin/v1/explain", json=body, headers=headers)
        assert answer.status_code == 401
        answer = await gateway.client.get("/admin/v1/requests/r", headers=headers)
        assert answer.status_code == 401
    for wrong in (b"{", b"[]", b'{"body": []}', b'{"body": {}}'):
        answer = await gateway.client.post("/admin/v1/explain", content=wrong, headers=ADMIN)
        assert answer.status_code == 400, wrong


async def test_what_became_of_requests_is_remembered_without_a_ledger(gateway: Running) -> None:
    headers = {"Authorization": f"Bearer {KEYS['all']}", "X-Octavo-Feature": "search"}
    answer = await gateway.chat("shadowed", max_tokens=5, headers=headers)
    await gateway.idle()
    path = f"/admin/v1/requests/{answer.headers['x-request-id']}"
    found = (await gateway.client.get(path, headers=ADMIN)).json()
    first = found["attempts"][0]
    assert (first["rule"], first["tier"], first["status"]) == ("model:shadowed", "both", "ok")
    assert (first["feature"], first["tenant"], first["key"]) == ("search", "acme", "all")
    assert first["cost"] == "0.000030000"  # 20 tokens in, 5 out
    assert found["escalations"] == []
    none = await gateway.client.get("/admin/v1/requests/none", headers=ADMIN)
    assert none.json() == {"attempts": [], "escalations": []}


def test_few_are_remembered_and_nothing_that_was_asked() -> None:
    recent = RecentAttempts(most=3)
    records = recent.before(NoRecords())
    plan = Plan(rule="r", tiers=())
    for number in (0, 1, 2, 3, 3):
        call = Call(
            request_id=f"r{number}",
            arrived=0.0,
            route="chat",
            path="/v1/chat/completions",
            model="m",
            body={"messages": "a secret text"},
        )
        attempt = Attempt(
            request_id=call.request_id,
            number=0,
            upstream_id=call.request_id,
            time_ns=0,
            tier="t",
            backend="b",
            model="m",
            status="ok",
            tokens=Tokens(input=1, output=2, device_ns=5),
        )
        records.attempts(call, plan, [attempt])
    assert [len(recent.view(f"r{number}")) for number in range(4)] == [0, 1, 1, 2]
    assert "secret" not in repr(recent._kept)
    assert recent.view("r3")[0]["device_s"] == 5e-9
