"""Reports out of a real ledger against plain Python that reads like the documentation."""

from __future__ import annotations

import os
from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.ledger.record import NANO, EngineTime, Outcome, UsageRecord
from octavo.ledger.store import open_ledger
from octavo.planning.cost_ledger import report_of
from octavo.planning.cost_prices import ListPrice, PriceBand
from octavo.planning.cost_query import CostQuery
from tests.planning.conftest import RATE, record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from octavo.planning.cost_report import CostReport
    from tests.ledger.postgres import PostgresServer

HOUR = 3600 * NANO
DAY = 24 * HOUR
BEGIN = 20_000 * DAY
END = BEGIN + 4 * DAY
PRICE = ListPrice(
    name="cloud",
    model="cloud",
    source="a test",
    bands=(
        PriceBand(input=Decimal("1.1"), cached_input=Decimal("0.11"), output=Decimal("3.3")),
        PriceBand(above=1000, input=Decimal("2.2"), output=Decimal("6.7")),
    ),
    per_request=Decimal("0.0001"),
)
NAMES = ("resolved", "thumbs_up")
BYS = [(), ("feature",), ("feature", "day"), ("tag:team",), ("month", "tenant"), ("session",)]

a_record = st.fixed_dictionaries(
    {
        # Days 0 to 5: the first and last lie outside the report.
        "time_ns": st.integers(-30, 120).map(lambda hours: BEGIN + hours * HOUR + 17),
        "feature": st.sampled_from(["", "chat", "search"]),
        "tenant": st.sampled_from(["acme", "globex"]),
        "parent_id": st.sampled_from(["", "", "r1", "given"]),
        "session_id": st.sampled_from(["", "s1", "s2", "s3"]),
        "trace_id": st.sampled_from(["", "t1", "t2"]),
        "tags": st.sampled_from([{}, {"team": "a"}, {"team": "b", "x": "1"}]),
        "prefill_ns": st.integers(0, 10 * NANO),
        "decode_ns": st.integers(0, 100 * NANO),
        "num_input_tokens": st.sampled_from([100, 1000, 1001, 5000]),
        "num_cached_tokens": st.integers(0, 100),
        "num_output_tokens": st.integers(0, 500),
        "hourly_rate_nano": st.sampled_from([RATE, RATE + 1, 0]),
    }
)
an_outcome = st.fixed_dictionaries(
    {
        "target": st.one_of(
            st.integers(0, 14).map(lambda n: {"request_id": f"r{n}"}),
            st.just({"request_id": "given"}),
            st.sampled_from([{"session_id": s} for s in ("s1", "s2", "nobody")]),
            st.sampled_from([{"trace_id": t} for t in ("t1", "t2")]),
        ),
        "name": st.sampled_from(NAMES),
        "success": st.booleans(),
        "value": st.sampled_from([None, Decimal("1.25"), Decimal("-0.000000001")]),
    }
)
an_hour = st.fixed_dictionaries(
    {
        "hour": st.integers(BEGIN // HOUR, END // HOUR - 1),
        "requests": st.integers(0, HOUR),
        "idle": st.integers(0, HOUR),
        "startup": st.integers(0, NANO),
    }
)


def joins(outcome: Outcome, request: UsageRecord) -> bool:
    return bool(
        (outcome.request_id and outcome.request_id in (request.request_id, request.parent_id))
        or (outcome.session_id and outcome.session_id == request.session_id)
        or (outcome.trace_id and outcome.trace_id == request.trace_id)
    )


def money(request: UsageRecord) -> Decimal:
    """Hourly rate / 3600 x seconds, to nine decimals."""
    exact = Decimal(request.hourly_rate_nano) * Decimal(request.total_ns) / Decimal(3600 * 10**18)
    return exact.quantize(Decimal("1e-9"), ROUND_HALF_UP)


def group_of(request: UsageRecord, by: tuple[str, ...]) -> tuple[str, ...]:
    day = (request.time_ns - BEGIN) // DAY
    texts = {
        "feature": request.feature,
        "tenant": request.tenant,
        "session": request.session_id,
        "tag:team": request.tags.get("team", ""),
        "day": f"2024-10-{4 + day:02d}",
        "month": "2024-10",
    }
    return tuple(texts[name] for name in by)


def list_cost(request: UsageRecord) -> Decimal:
    band = PRICE.bands[request.num_input_tokens > 1000]
    cached_price = band.input if band.cached_input is None else band.cached_input
    fresh = request.num_input_tokens - request.num_cached_tokens
    tokens = fresh * band.input + request.num_cached_tokens * cached_price
    return (tokens + request.num_output_tokens * band.output) / 10**6 + PRICE.per_request


class Reference:
    """The whole report by loops over requests."""

    def __init__(
        self,
        requests: list[UsageRecord],
        outcomes: list[Outcome],
        hours: list[EngineTime],
        by: tuple[str, ...],
        wanted: Callable[[UsageRecord], bool],
    ) -> None:
        inside = [r for r in requests if BEGIN <= r.time_ns < END]
        self.requests = [r for r in inside if wanted(r)]
        self.groups: dict[Any, list[UsageRecord]] = defaultdict(list)
        for request in self.requests:
            self.groups[group_of(request, by)].append(request)
        self.other_ns = spread(
            inside,
            hours,
            lambda hour: sum(ns for bucket, ns in hour.buckets.items() if bucket != "requests"),
        )
        self.outcomes = outcomes
        self.all_requests = requests

    def joined(self, group: Any, name: str) -> list[UsageRecord]:
        """Requests with an outcome of the name: each once."""
        named = [o for o in self.outcomes if o.name == name]
        return [r for r in self.groups[group] if any(joins(o, r) for o in named)]

    def counted(self, group: Any, name: str) -> list[Outcome]:
        """Outcomes of the name whose last request is in the group."""
        found = []
        for outcome in self.outcomes:
            # Whatever the report's time is, so that months add up. Ids are in the order of writing.
            its = [r for r in self.all_requests if joins(outcome, r)]
            last = max(its, key=lambda r: (r.time_ns, int(r.request_id[1:])), default=None)
            if outcome.name == name and any(last is r for r in self.groups[group]):
                found.append(outcome)
        return found


def spread(
    requests: list[UsageRecord], hours: list[EngineTime], amount: Callable[[EngineTime], int]
) -> dict[str, Fraction]:
    """Each request's share of other time, as exact fractions."""
    shares: dict[str, Fraction] = defaultdict(Fraction)
    whole = sum(r.total_ns for r in requests)
    for hour in hours:
        day = hour.hour // 24
        of_day = [r for r in requests if r.time_ns // DAY == day]
        ns = sum(r.total_ns for r in of_day)
        of, ns = (of_day, ns) if ns else (requests, whole)
        for request in of if ns else ():
            shares[request.request_id] += Fraction(amount(hour) * request.total_ns, ns)
    return shares


def phases(max_examples: int) -> settings:
    """Without shrinking: an example takes 0.1 s."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )


a_case = given(
    records=st.lists(a_record, max_size=15),
    outcomes=st.lists(an_outcome, max_size=8),
    hours=st.lists(an_hour, max_size=5, unique_by=lambda hour: hour["hour"]),
    by=st.sampled_from(BYS),
    feature=st.sampled_from([None, "chat"]),
    rolled=st.booleans(),
)


@phases(int(os.environ.get("STATEFUL_EXAMPLES", "15")))
@a_case
def test_against_plain_python(new_ledger: Callable[[], Path], **case: Any) -> None:
    path = new_ledger()
    check_case(str(path), **case)
    path.unlink()


@phases(5)
@a_case
def test_on_postgresql(postgres: PostgresServer, **case: Any) -> None:
    check_case(postgres.new_ledger(), **case)


def check_case(
    url: str,
    *,
    records: list[dict[str, Any]],
    outcomes: list[dict[str, Any]],
    hours: list[dict[str, Any]],
    by: tuple[str, ...],
    feature: str | None,
    rolled: bool,
) -> None:
    requests = [record(f"r{n}", **fields) for n, fields in enumerate(records)]
    came = [
        Outcome(
            id=f"o{n}",
            time_ns=END + 9 * DAY,  # days later
            name=fields["name"],
            success=fields["success"],
            value=fields["value"],
            **fields["target"],
        )
        for n, fields in enumerate(outcomes)
    ]
    times = [
        EngineTime(
            server="s",
            hour=fields["hour"],
            num_devices=2,
            time_ns=END,
            buckets={name: fields[name] for name in ("requests", "idle", "startup")},
            hourly_rate_nano=RATE,
        )
        for fields in hours
    ]
    query = CostQuery(
        since_ns=BEGIN,
        until_ns=END,
        by=by,
        filters=(("feature", (feature,)),) if feature else (),
        outcomes=NAMES,
    )
    with open_ledger(url) as ledger:
        ledger.add_outcomes(came[:3])  # before their requests
        ledger.add_usage(requests)
        ledger.add_outcomes(came[3:])
        ledger.add_engine_time(times)
        if rolled:
            ledger.roll_up()
        report, _ = report_of(ledger, query, [PRICE])
    reference = Reference(
        requests, came, times, by, lambda r: feature is None or r.feature == feature
    )
    check_rows(report, reference)
    check_sums(report)


def check_rows(report: CostReport, reference: Reference) -> None:
    assert {row.group for row in report.rows} == set(reference.groups)
    for row in report.rows:
        requests = reference.groups[row.group]
        assert row.num_requests == len(requests)
        assert row.num_input_tokens == sum(r.num_input_tokens for r in requests)
        assert row.num_cached_tokens == sum(r.num_cached_tokens for r in requests)
        assert row.num_output_tokens == sum(r.num_output_tokens for r in requests)
        assert row.device_ns == sum(r.total_ns for r in requests)
        assert Decimal(row.cost_nano).scaleb(-9) == sum(map(money, requests))
        assert row.compared["cloud"] == sum(map(list_cost, requests))
        other = sum((reference.other_ns[r.request_id] for r in requests), Fraction())
        assert abs(row.other_ns - other) < 6  # less than one for each of 5 days and all together
        for name in NAMES:
            figures, joined = row.outcomes[name], reference.joined(row.group, name)
            counted = reference.counted(row.group, name)
            assert figures.num_requests == len(joined)
            assert Decimal(figures.cost_nano).scaleb(-9) == sum(map(money, joined))
            assert figures.num_outcomes == len(counted)
            assert figures.num_successes == sum(o.success for o in counted)
            values = [o.value for o in counted if o.value is not None]
            assert Decimal(figures.value_nano).scaleb(-9) == sum(values)


def check_sums(report: CostReport) -> None:
    """Columns add up to the total row."""
    for name in ("num_requests", "device_ns", "other_ns", "other_nano", "cost_nano"):
        assert sum(getattr(row, name) for row in report.rows) == getattr(report.total, name)
    assert sum(row.compared["cloud"] for row in report.rows) == report.total.compared["cloud"]
    for name in NAMES:
        for field in ("num_outcomes", "num_successes", "value_nano", "num_requests", "cost_nano"):
            parts = sum(getattr(row.outcomes[name], field) for row in report.rows)
            assert parts == getattr(report.total.outcomes[name], field)


# The two views


def days_of(*hours: tuple[int, dict[str, int]]) -> list[EngineTime]:
    return [
        EngineTime(
            server="s",
            hour=BEGIN // HOUR + hour,
            num_devices=1,
            time_ns=END,
            buckets=buckets,
            hourly_rate_nano=RATE,
        )
        for hour, buckets in hours
    ]


def loaded(
    path: Path, times: list[EngineTime], *requests: UsageRecord, **fields: Any
) -> CostReport:
    query = CostQuery(since_ns=BEGIN, until_ns=END, view="loaded", **fields)
    with open_ledger(str(path)) as ledger:
        ledger.add_usage(requests)
        ledger.add_engine_time(times)
        return report_of(ledger, query)[0]


def test_loaded_costs_are_all_that_the_devices_cost(new_ledger: Callable[[], Path]) -> None:
    times = days_of(
        (0, {"requests": 40 * NANO, "idle": 3500 * NANO, "startup": 60 * NANO}),
        (30, {"requests": 0, "idle": 3600 * NANO}),  # a day without requests
        (50, {"requests": 3600 * NANO}),
    )
    requests = [
        record("a", time_ns=BEGIN + 5, feature="x", decode_ns=30 * NANO),
        record("b", time_ns=BEGIN + 5, feature="y", decode_ns=10 * NANO),
        record("c", time_ns=BEGIN + 50 * HOUR, feature="x", decode_ns=3600 * NANO),
    ]
    report = loaded(new_ledger(), times, *requests)
    assert report.total.device_ns + report.total.other_ns == 3 * 3600 * NANO
    assert report.total.cost_nano == 3 * RATE
    x, y = report.rows
    whole, homeless = 3640, 3600
    other_x = Fraction(3560 * 3, 4) + Fraction(homeless * 3630, whole)
    assert abs(x.other_ns - other_x * NANO) < 2
    assert (x.other_share or 0) < (y.other_share or 0)  # y had a quiet day
    assert report.device_ns == {"idle": 7100 * NANO, "requests": 3640 * NANO, "startup": 60 * NANO}


def test_filters_leave_others_their_share(new_ledger: Callable[[], Path]) -> None:
    times = days_of((0, {"requests": 40 * NANO, "idle": 40 * NANO}))
    requests = [
        record("a", time_ns=BEGIN, feature="x", decode_ns=30 * NANO),
        record("b", time_ns=BEGIN, feature="y", decode_ns=10 * NANO),
    ]
    report = loaded(new_ledger(), times, *requests, filters=(("feature", ("y",)),))
    (row,) = report.rows
    assert (row.device_ns, row.other_ns) == (10 * NANO, 10 * NANO)


def test_outcomes_carry_their_part_of_the_load(new_ledger: Callable[[], Path]) -> None:
    path = new_ledger()
    with open_ledger(str(path)) as ledger:
        outcome = Outcome(id="o", time_ns=END, request_id="a", name="won", success=True)
        ledger.add_outcomes([outcome])
    times = days_of((0, {"requests": 40 * NANO, "idle": 3560 * NANO}))
    requests = [
        record("a", time_ns=BEGIN, decode_ns=30 * NANO),
        record("b", time_ns=BEGIN, decode_ns=10 * NANO),
    ]
    report = loaded(path, times, *requests, outcomes=("won",))
    assert abs(report.total.cost_nano - RATE) <= 2  # each request's cost is a whole number
    assert abs(report.total.outcomes["won"].cost_nano - RATE * 3 // 4) <= 2
    won = report.total.outcomes["won"]
    assert won.cost_per_success == Decimal(won.cost_nano).scaleb(-9)


def test_loads_need_device_time(new_ledger: Callable[[], Path]) -> None:
    with pytest.raises(ConfigError, match="--view usage"):
        loaded(new_ledger(), [], record("a", time_ns=BEGIN, decode_ns=1))


# Currencies and notes


def test_currencies_are_not_added_up(new_ledger: Callable[[], Path]) -> None:
    path = new_ledger()
    query = CostQuery(since_ns=BEGIN)
    with open_ledger(str(path)) as ledger:
        ledger.add_usage(
            [
                record("a", time_ns=BEGIN, decode_ns=NANO, currency="EUR"),
                record("b", time_ns=BEGIN, decode_ns=NANO, currency="USD"),
            ]
        )
        with pytest.raises(ConfigError, match="--filter currency=EUR"):
            report_of(ledger, query)
        euros = CostQuery(since_ns=BEGIN, filters=(("currency", ("EUR",)),))
        report, _ = report_of(ledger, euros)
        assert (report.currency, report.total.num_requests) == ("EUR", 1)
        with pytest.raises(ConfigError, match="priced in USD and the requests in EUR"):
            report_of(ledger, euros, [PRICE])


def test_notes_tell_what_is_missing(new_ledger: Callable[[], Path]) -> None:
    with open_ledger(str(new_ledger())) as ledger:
        assert report_of(ledger, CostQuery(since_ns=0))[1] == [
            "there is no request in this time that the filters let in"
        ]
        ledger.add_usage([record("a", time_ns=BEGIN, decode_ns=NANO, hourly_rate_nano=0)])
        ledger.add_outcomes(
            [
                Outcome(id="1", time_ns=BEGIN, request_id="a", name="won", success=True),
                Outcome(id="2", time_ns=BEGIN, request_id="later", name="won", success=True),
            ]
        )
        _, notes = report_of(ledger, CostQuery(since_ns=0, outcomes=("wom",)))
    assert any("--price-per-device-hour" in note for note in notes)
    assert any("idle is not known" in note for note in notes)
    assert any("no outcome named wom" in note and "there are won" in note for note in notes)
    assert any(note.endswith("joined with no request: 1") for note in notes)
