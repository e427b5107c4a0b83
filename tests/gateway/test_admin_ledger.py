"""What the admin API reads of a ledger, in SQLite and PostgreSQL: sums, pages, filters."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError, InvalidRequestError
from octavo.gateway.admin_ledger import LedgerViews, amount
from octavo.ledger.record import AttemptRecord, EscalationRecord, UsageRecord, from_nano
from octavo.ledger.store import open_ledger

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 10**9
DAY_NS = 86_400 * 10**9
INJECTED = ("' OR 1=1 --", '"', "%", "x'; DROP TABLE usage; --", "\\", "$1", "?")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        empty: Path = request.getfixturevalue("empty_ledger")
        return f"sqlite:///{shutil.copy(empty, tmp_path / 'ledger.db')}"
    made: str = request.getfixturevalue("postgres").new_ledger()
    return made


def views_of(url: str, **options: Any) -> LedgerViews:
    return LedgerViews(url, now=lambda: NOW, **options)


def usage(index: int, **fields: Any) -> UsageRecord:
    values = {
        "request_id": f"u{index}",
        "time_ns": NOW_NS - 10**9,
        "route": "/v1/chat/completions",
        "backend": "own",
        "model": "m",
        "prefill_ns": 10**9,
        "decode_ns": 10**9,
        "waste_ns": 0,
        "num_input_tokens": 10,
        "num_cached_tokens": 4,
        "num_output_tokens": 5,
        "e2e_ns": 1,
        "finish_reason": "stop",
        "hourly_rate_nano": 0,
        "price_nano": 1_000_000_001,
        **fields,
    }
    return UsageRecord(**values)


def escalation(request_id: str, time_ns: int, **fields: Any) -> EscalationRecord:
    values = {
        "request_id": request_id,
        "number": 0,
        "time_ns": time_ns,
        "rule": "r",
        "judge": "j",
        "reason": "too short",
        "score": 0.25,
        "answer_sha256": "",
        "cheap_tier": "small",
        "cheap_backend": "own",
        "cheap_model": "m",
        "cheap_cost_nano": 1,
        "dear_tier": "large",
        "dear_backend": "cloud",
        "dear_model": "M",
        "dear_status": "ok",
        "dear_cost_nano": 10**9 + 1,
        "difference_nano": 10**9,
        **fields,
    }
    return EscalationRecord(**values)


def test_spend_is_the_sum_of_the_records_to_the_last_digit(url: str) -> None:
    records = [
        usage(0, feature="chat", tenant="a", key="k1"),
        usage(1, feature="chat", tenant="b", key="k2", time_ns=NOW_NS - DAY_NS),
        usage(2, feature="", tenant="a", key="k3"),
        usage(3, feature="chat", tenant="a", key="k1", time_ns=NOW_NS - 8 * DAY_NS),
    ]
    with open_ledger(url) as ledger:
        ledger.add_usage(records)
    views = views_of(url, keys_of_team={"red": ["k1", "k2"]}.__getitem__)
    found = views.spend({})
    assert found["by"] == ("feature",)
    assert found["since"] == datetime(2026, 11, 21, tzinfo=UTC)
    [chat, untagged] = found["data"]
    assert (chat["key"], chat["num_requests"], chat["cost"]) == (("chat",), 2, "2.000000002")
    assert (untagged["key"], untagged["cost"]) == (("",), "1.000000001")
    assert chat["device_seconds"] == 4.0
    assert (chat["num_input_tokens"], chat["num_cached_tokens"]) == (20, 8)
    days = views.spend({"by": "feature,day", "since": "all"})["data"]
    assert {tuple(row["key"]) for row in days} == {
        ("chat", "2026-11-28"), ("chat", "2026-11-27"), ("chat", "2026-11-20"), ("", "2026-11-28"),
    }  # fmt: skip
    assert sum(Decimal(row["cost"]) for row in days) == from_nano(4 * 1_000_000_001)
    for query, num in (
        ({"tenant": "a"}, 2),
        ({"tenant": "a", "feature": ""}, 1),
        ({"team": "red"}, 2),
        ({"team": "red", "key": "k2"}, 1),
        ({"team": "red", "key": "k3"}, 0),
        ({"since": "all", "until": "2026-11-21"}, 1),
        *(({"feature": text}, 0) for text in INJECTED),
    ):
        rows = views.spend(query)["data"]
        assert sum(row["num_requests"] for row in rows) == num, query


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"by": "colour"}, ConfigError),
        ({"by": "day,hour"}, ConfigError),
        ({"since": "yesterday"}, ConfigError),
        ({"colour": "red"}, ConfigError),
        ({"day": "2026-11-28"}, ConfigError),
        ({"feature": "a\0b"}, InvalidRequestError),
    ],
)
def test_what_spend_does_not_know_is_named(
    empty_ledger: Path, query: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error, match="|".join((*query, *query.values())).replace("\0", ".")):
        views_of(str(empty_ledger)).spend(query)


@settings(
    max_examples=int(os.environ.get("STATEFUL_EXAMPLES", "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    times=st.lists(st.integers(0, 4), max_size=25),
    limit=st.integers(1, 7),
)
def test_pages_of_escalations_have_each_once(
    empty_ledger: Path, tmp_path_factory: pytest.TempPathFactory, times: list[int], limit: int
) -> None:
    path = tmp_path_factory.mktemp("pages") / "ledger.db"
    shutil.copy(empty_ledger, path)
    records = [
        escalation(f"r:{index % 3}", NOW_NS - time, number=index)  # ids with the cursor's own sign
        for index, time in enumerate(times)
    ]
    with open_ledger(str(path)) as ledger:
        ledger.add(records)
    views = views_of(str(path))
    rows: list[dict[str, Any]] = []
    before = ""
    while True:
        page: Any = views.escalations({"limit": str(limit), "before": before})
        assert len(page["data"]) <= limit
        rows += page["data"]
        before = page["next"]
        if not before:
            break
    assert sorted(row["number"] for row in rows) == list(range(len(times)))
    assert [row["time"] for row in rows] == sorted((row["time"] for row in rows), reverse=True)


def test_escalations_their_filters_and_whether_they_pay(url: str) -> None:
    attempt = AttemptRecord(
        request_id="a",
        parent_id="the-callers",
        number=0,
        upstream_id="a",
        time_ns=NOW_NS - 5,
        feature="chat",
        route="/v1/chat/completions",
        rule="r",
        tier="small",
        backend="own",
        model="m",
        status="escalated",
        cost_nano=1,
        ttft_ns=10**6,
        e2e_ns=10**9,
        judge="j",
        score=0.25,
        reason="too short",
    )
    with open_ledger(url) as ledger:
        ledger.add(
            [
                attempt,
                escalation("a", NOW_NS - 5, feature="chat", tenant="t"),
                escalation("b", NOW_NS - 6, feature="other", judge="k"),
                escalation("old", NOW_NS - 9 * DAY_NS),
            ]
        )
    views = views_of(url)
    found: Any = views.escalations({})
    assert [row["request_id"] for row in found["data"]] == ["a", "b"]
    first = found["data"][0]
    assert (first["cheap_cost"], first["dear_cost"]) == ("0.000000001", "1.000000001")
    assert (first["difference"], first["score"]) == ("1.000000000", 0.25)
    [total] = found["totals"]
    assert (total["feature"], total["judge"], total["escalated"]) == ("chat", "j", 1)
    for query, ids in (
        ({"feature": "chat"}, ["a"]),
        ({"judge": "k"}, ["b"]),
        ({"tenant": "t", "feature": "chat"}, ["a"]),
        ({"since": "all"}, ["a", "b", "old"]),
        ({"since": "all", "until": "2026-11-21"}, ["old"]),
        *(({"feature": text}, []) for text in INJECTED),
    ):
        page: Any = views.escalations(query)
        assert [row["request_id"] for row in page["data"]] == ids, query
    for name in ("a", "the-callers"):
        both: Any = views.attempts(name)
        assert [row["status"] for row in both["attempts"]] == ["escalated"]
        assert both["attempts"][0]["ttft_s"] == 0.001
        assert both["attempts"][0]["device_s"] is None
        assert [row["difference"] for row in both["escalations"]] == ["1.000000000"]
    for name in ("nobody", *INJECTED):
        assert views.attempts(name) == {"attempts": [], "escalations": []}


@pytest.mark.parametrize(
    "query",
    [
        {"colour": "red"},
        {"request_id": "a"},
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "1e2"},
        {"limit": "-1"},
        {"limit": "0000000000001"},
        {"limit": "٣"},
        {"before": "x"},
        {"before": "1"},
        {"before": "-1:0:a"},
        {"feature": "\0"},
    ],
)
def test_wrong_parameters_of_escalations_are_named(
    empty_ledger: Path, query: dict[str, str]
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        views_of(str(empty_ledger)).escalations(query)
    assert caught.value.param == next(iter(query))


def test_a_ledger_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    views = views_of(str(tmp_path / "none.db"))
    for ask in (lambda: views.spend({}), lambda: views.escalations({}), lambda: views.attempts("")):
        with pytest.raises(ConfigError, match="no ledger"):
            ask()


@given(st.integers(-(2**63), 2**63))
def test_amounts_are_exact(nano: int) -> None:
    assert Decimal(amount(nano)) == from_nano(nano)
    assert "E" not in amount(nano)
