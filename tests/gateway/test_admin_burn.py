"""A budget's past out of the ledger, against its own word on which requests it holds for."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError, InvalidRequestError, NotFoundError
from octavo.gateway.admin_burn import BurnDown
from octavo.gateway.budgets_answers import subject_of
from octavo.gateway.budgets_scope import holds, period_of, scope_of
from octavo.gateway.config_budgets import Budget
from octavo.gateway.model import Call, KeyInfo
from octavo.ledger.record import UsageRecord, from_nano
from octavo.ledger.store import open_ledger
from octavo.planning.cost_query import to_ns

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)
KEYS = {
    "k1": KeyInfo(key_id="k1", team="red", budgets=("b",)),
    "k2": KeyInfo(key_id="k2", team="blue"),
    "k3": KeyInfo(key_id="k3", team="red & green"),
}
FEATURES = ("chat", "chat/fast", "search", "")
TENANTS = ("acme", "a&b=c", "globex", "")


@pytest.fixture(scope="module")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    open_ledger(str(path)).close()
    return path


def burn(path: Path, budget: Budget) -> BurnDown:
    return BurnDown(str(path), {"b": budget}, lambda: KEYS, now=lambda: NOW)


def call_of(record: UsageRecord) -> Call:
    return Call(
        request_id=record.request_id,
        arrived=0.0,
        route="chat",
        path=record.route,
        model="m",
        body={},
        key=KEYS.get(record.key, KeyInfo(key_id=record.key)),
        feature=record.feature,
        tenant=record.tenant,
        tags=record.tags,
    )


records_of_any_kind = st.lists(
    st.tuples(
        st.integers(0, 3) | st.integers(0, 40 * 24),  # hours ago
        st.sampled_from(FEATURES),
        st.sampled_from(TENANTS),
        st.sampled_from((*KEYS, "gone", "")),
        st.sampled_from(({}, {"env": "prod"}, {"env": "test", "x": "1"})),
        st.integers(0, 10**12),
    ),
    min_size=6,
    max_size=20,
)
budgets = st.builds(
    Budget,
    cost=st.just(Decimal(5)),
    period=st.sampled_from(("day", "month", "total")),
    per=st.sampled_from(
        ((), ("key",), ("feature", "tenant"), ("team",), ("tag:env", "key"), ("tenant", "team"))
    ),
    holds_for=st.sampled_from(("all", "named")),
    features=st.sampled_from(((), ("chat*",), ("", "search"))),
    tenants=st.sampled_from(((), ("a*",))),
    teams=st.sampled_from(((), ("red*",))),
    tags=st.sampled_from(({}, {"env": "pro?"}, {"x": "*"})),
)


@settings(
    max_examples=int(os.environ.get("STATEFUL_EXAMPLES", "12")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=records_of_any_kind, several=st.lists(budgets, min_size=5, max_size=5))
def test_what_is_counted_is_what_the_budget_holds_for(
    empty_ledger: Path,
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[Any, ...]],
    several: list[Budget],
) -> None:
    path = tmp_path_factory.mktemp("burn") / "ledger.db"
    shutil.copy(empty_ledger, path)
    records = [
        UsageRecord(
            request_id=f"r{index}",
            time_ns=to_ns(NOW - timedelta(hours=hours)),
            feature=feature,
            tenant=tenant,
            key=key,
            tags=tags,
            route="/v1/chat/completions",
            backend="own",
            model="x",
            prefill_ns=3,
            decode_ns=4,
            waste_ns=0,
            num_input_tokens=10,
            num_cached_tokens=5,
            num_output_tokens=2,
            e2e_ns=1,
            finish_reason="stop",
            hourly_rate_nano=0,
            price_nano=cost,
        )
        for index, (hours, feature, tenant, key, tags, cost) in enumerate(rows)
    ]
    with open_ledger(str(path)) as ledger:
        ledger.add_usage(records)
    for budget in several:
        check(path, budget, records)


def check(path: Path, budget: Budget, records: list[UsageRecord]) -> None:
    """What is told of each subject is what the budget would have counted for it."""
    start_ns, _ = period_of(budget.period, to_ns(NOW))
    expected: dict[str, list[int]] = {}
    for record in records:
        call = call_of(record)
        if holds("b", budget, call) and record.time_ns >= start_ns:
            sums = expected.setdefault(scope_of(budget, call), [0, 0])
            sums[0] += record.price_nano or 0
            sums[1] += 1
    scopes = set(expected) | {scope_of(budget, call_of(record)) for record in records}
    for scope in scopes:
        found: Any = burn(path, budget).history({"budget": "b", **subject_of(scope)})
        cost, num = expected.get(scope, (0, 0))
        assert sum(Decimal(row["cost"]) for row in found["data"]) == from_nano(cost)
        assert sum(row["tokens"] for row in found["data"]) == 12 * num
        assert sum(row["gpu_hours"] for row in found["data"]) == pytest.approx(7 * num / 3600e9)
        times = [row["time"] for row in found["data"]]
        assert times == sorted(set(times))
        assert all(len(time) == (13 if found["step"] == "hour" else 10) for time in times)


@pytest.mark.parametrize(
    ("fields", "query", "error", "words"),
    [
        ({}, {"budget": "c", "key": "k1"}, NotFoundError, "no budget 'c'"),
        ({}, {"key": "k1"}, NotFoundError, "no budget ''"),
        ({}, {"budget": "b"}, InvalidRequestError, "per key"),
        ({}, {"budget": "b", "key": "k1", "tenant": "t"}, InvalidRequestError, "per key"),
        ({"per": ()}, {"budget": "b", "key": "k1"}, InvalidRequestError, "per nothing"),
        ({"period": "hour"}, {"budget": "b", "key": "k1"}, ConfigError, "by the hour"),
        ({"models": ("m*",)}, {"budget": "b", "key": "k1"}, ConfigError, "models"),
        ({"per": ("model",)}, {"budget": "b", "model": "m"}, ConfigError, "models"),
    ],
)
def test_what_it_cannot_tell_it_says(
    empty_ledger: Path,
    fields: dict[str, Any],
    query: dict[str, str],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        burn(empty_ledger, Budget(cost=Decimal(1), **fields)).history(query)
