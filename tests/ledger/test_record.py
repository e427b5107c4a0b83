from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.ledger.record import Outcome, from_nano, to_nano
from tests.ledger.examples import SETTINGS
from tests.ledger.records import usage


@SETTINGS
@given(
    rate=st.integers(0, 2**53),
    prefill_ns=st.integers(0, 2**53),
    decode_ns=st.integers(0, 2**53),
)
def test_cost_is_the_rate_times_the_seconds_rounded_once(
    rate: int, prefill_ns: int, decode_ns: int
) -> None:
    record = usage("a", prefill_ns=prefill_ns, decode_ns=decode_ns, hourly_rate_nano=rate)
    # In whole nano-units of money and whole nanoseconds, where Decimal needs no digits cut.
    exact = Decimal(rate) * (prefill_ns + decode_ns) / Decimal(3600 * 10**9)
    with_digits = exact.quantize(Decimal(1), ROUND_HALF_UP)
    assert abs(record.cost_nano - exact) <= Decimal("0.500001")
    if exact < 10**15:
        assert record.cost_nano == with_digits
    assert record.gpu_seconds * 10**9 == record.total_ns


def test_halves_are_rounded_up() -> None:
    rate = 3600 * 10**9 // 2  # half a nano-unit per nanosecond
    costs = [
        usage("a", prefill_ns=ns, decode_ns=0, hourly_rate_nano=rate).cost_nano for ns in (1, 2, 3)
    ]
    assert costs == [1, 1, 2]


@pytest.mark.parametrize("ids", [{}, {"request_id": "a", "session_id": "b"}])
def test_an_outcome_joins_by_exactly_one_id(ids: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="exactly one") as caught:
        Outcome(id="1", time_ns=1, name="resolved", success=True, **ids)
    assert caught.value.param == "request_id"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "0.1234567891", "-9300000000"])
def test_values_that_no_ledger_keeps_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Outcome(
            id="1", time_ns=1, request_id="a", name="resolved", success=True, value=Decimal(value)
        )
    assert caught.value.param == "value"


@SETTINGS
@given(st.decimals(-9_000_000_000, 9_000_000_000, places=9))
def test_amounts_keep_nine_decimals(amount: Decimal) -> None:
    assert from_nano(to_nano(amount, "value")) == amount


def test_outcomes_travel() -> None:
    outcome = Outcome(
        id="1", time_ns=1, trace_id="t", name="resolved", success=False, value=Decimal("1.50")
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(outcome), type=Outcome) == outcome
