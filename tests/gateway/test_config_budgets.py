"""The configuration's budgets: what is refused, and that secrets are not shown."""

from __future__ import annotations

import pytest

from octavo.gateway.config import parse
from octavo.gateway.config_budgets import MAX_COUNT

HEAD = """
backends:
  a: {url: "http://127.0.0.1:1", models: {m: {}}}
"""


def problems(text: str) -> str:
    config, found = parse((HEAD + text).encode())
    assert (config is None) == bool(found)
    return "\n".join(map(str, found))


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("{period: day}", "give at least one of cost"),
        ("{cost: 0}", "cost: must be above 0"),
        ("{cost: -1}", "cost: must be above 0"),
        ("{cost: 1e30}", "cost: must be above 0 and at most"),
        ("{cost: 0.0000000001}", "cost: is too fine"),
        ("{gpu_hours: 0.3333333333333333}", "gpu_hours: is too fine"),
        ("{cost: 1, period: year}", "period"),
        ("{cost: 1, per: [user]}", "per"),
        ("{cost: 1, per: [key, key]}", "per: names something twice"),
        ("{cost: 1, alerts: [0]}", "alerts"),
        ("{tokens: 1, hard: true}", "hard"),
    ],
)
def test_what_no_budget_can_be(budget: str, expected: str) -> None:
    assert expected in problems(f"budgets: {{rules: {{b: {budget}}}}}")


@pytest.mark.parametrize(
    ("webhook", "expected"),
    [
        ("{url: ftp://h/p4th}", "must begin with https://"),
        ("{url: 'https://user:p4th@host/'}", "must not have a user"),
        ("{url: 'http://169.254.169.254/p4th'}", "link-local"),
        ("{url: 'http://[::ffff:169.254.169.254]/p4th'}", "link-local"),
        ("{url: 'http://metadata.google.internal/p4th'}", "link-local"),
        ("{url: 'http://h:99999/p4th'}", "not a URL"),
        ("{url: 'https://h/p4th', budgets: [c]}", "no budget named 'c'"),
    ],
)
def test_what_no_webhook_can_be(webhook: str, expected: str) -> None:
    told = problems(f"budgets: {{rules: {{b: {{cost: 1}}}}, webhooks: {{w: {webhook}}}}}")
    assert expected in told
    assert "p4th" not in told


def test_stores_and_keys_need_what_they_name() -> None:
    rule = "rules: {b: {cost: 1}}"
    assert "redis_url" in problems(f"budgets: {{store: redis, {rule}}}")
    assert "ledger.url" in problems(f"budgets: {{store: ledger, {rule}}}")
    key = f"keys: {{inline: [{{id: k, sha256: '{'0' * 64}', budgets: [c]}}]}}"
    told = problems(f"budgets: {{{rule}}}\n{key}")
    assert "budgets[0]: there is no budget in `budgets.rules` named 'c'" in told


def test_all_of_a_budget() -> None:
    text = f"""
budgets:
  store: redis
  on_failure: allow
  rules:
    b: {{cost: {MAX_COUNT // 10**9}, tokens: 5, gpu_hours: 0.25, period: total, kind: soft,
        per: ["tag:cost.center", team], tags: {{stage: "p*"}}, alerts: [0.9, 2]}}
  webhooks: {{w: {{url: "https://hooks.example/T0KEN", budgets: [b]}}}}
redis_url: redis://127.0.0.1:6379/0
"""
    config, found = parse((HEAD + text).encode())
    assert config is not None, found
    budget = config.budgets.rules["b"]
    assert budget.cost_nano == MAX_COUNT // 10**9 * 10**9
    assert budget.device_ns == 900 * 10**9
    assert "T0KEN" not in repr(config)
