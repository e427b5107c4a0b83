"""Periods in UTC, and whom a call is counted for."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from octavo.gateway.budgets_scope import ceiling_of, holds, period_of, scope_of
from octavo.gateway.config_budgets import Budget
from octavo.gateway.model import Amount, KeyInfo
from tests.gateway.test_limits import call_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(
    lambda time: time.replace(tzinfo=UTC)
)


def ns(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1) * 1000


@given(TIMES)
def test_periods_are_those_of_the_calendar(time: datetime) -> None:
    hour = time.replace(minute=0, second=0, microsecond=0)
    assert period_of("hour", ns(time)) == (ns(hour), ns(hour + timedelta(hours=1)))
    day = hour.replace(hour=0)
    assert period_of("day", ns(time)) == (ns(day), ns(day + timedelta(days=1)))
    num_days = calendar.monthrange(time.year, time.month)[1]
    month = day.replace(day=1)
    assert period_of("month", ns(time)) == (ns(month), ns(month + timedelta(days=num_days)))
    assert period_of("total", ns(time)) == (0, None)


@given(TIMES, st.sampled_from(["hour", "day", "month"]))
def test_a_period_ends_where_the_next_begins(time: datetime, period: Any) -> None:
    start, end = period_of(period, ns(time))
    assert end is not None
    assert start <= ns(time) < end
    assert period_of(period, end)[0] == end
    assert period_of(period, end - 1) == (start, end)


def test_patterns_and_names() -> None:
    call = msgspec.structs.replace(
        call_of(feature="support-eu", tenant="acme", tags={"team": "a1"}),
        key=KeyInfo(key_id="k", team="red", budgets=("named",)),
    )
    for fields, expected in [
        ({}, True),
        ({"features": ("support-*",)}, True),
        ({"features": ("chat-*",)}, False),
        ({"features": ("chat-*", "support-??")}, True),
        ({"tenants": ("acme",), "teams": ("r*",), "models": ("m",)}, True),
        ({"teams": ("blue",)}, False),
        ({"models": ("M",)}, False),
        ({"tags": {"team": "a*"}}, True),
        ({"tags": {"team": "b*"}}, False),
        ({"tags": {"other": "?*"}}, False),
    ]:
        budget = Budget(tokens=1, **fields)
        assert holds("x", budget, call) == expected, fields
    assert holds("named", Budget(tokens=1, holds_for="named"), call)
    assert not holds("other", Budget(tokens=1, holds_for="named"), call)


VALUES = st.text(max_size=12)


@given(st.tuples(VALUES, VALUES, VALUES), st.tuples(VALUES, VALUES, VALUES))
def test_nobody_passes_for_another(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    budget = Budget(tokens=1, per=("tenant", "feature", "tag:x"))

    def scope(values: tuple[str, ...]) -> str:
        tenant, feature, tag = values
        return scope_of(budget, call_of(tenant=tenant, feature=feature, tags={"x": tag}))

    assert (scope(one) == scope(other)) == (one == other)
    read = parse_qsl(scope(one), keep_blank_values=True)
    assert read == list(zip(budget.per, one, strict=True))
    assert scope(one).isascii()
    assert scope(one).isprintable()


def test_long_values_are_told_apart_and_short() -> None:
    budget = Budget(tokens=1, per=("tag:x",))
    scopes = {scope_of(budget, call_of(tags={"x": "ä" * 500 + end})) for end in "abc"}
    assert len(scopes) == 3
    assert max(map(len, scopes)) < 400


def test_a_ceiling_has_whole_units() -> None:
    budget = Budget(cost=Decimal("0.000000001"), gpu_hours=Decimal("1.5"), tokens=7)
    ceiling = ceiling_of("b", budget, "", 0)
    assert (ceiling.cost_nano, ceiling.num_tokens, ceiling.device_ns) == (1, 7, 5400 * 10**9)
    assert ceiling.fits(Amount(1, 7, 5400 * 10**9))
    for more in (Amount(2, 0, 0), Amount(0, 8, 0), Amount(0, 0, 5400 * 10**9 + 1)):
        assert not ceiling.fits(more)
    assert ceiling.part(Amount(0, 0, 2700 * 10**9)) == 0.5
