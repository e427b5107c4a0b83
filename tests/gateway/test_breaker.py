"""A breaker opens, waits, tries and closes; under random operations it keeps its promises."""

from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from octavo.gateway.breaker import Breaker
from octavo.gateway.config_backends import BreakerRule

RULE = BreakerRule(failures=3, window=10.0, ratio=0.5, open=2.0, max_open=6.0)


def tripped(now: float = 0.0) -> Breaker:
    """One that has just opened."""
    breaker = Breaker(RULE)
    for _ in range(3):
        assert breaker.begin(now)
        breaker.fail(now)
    return breaker


def test_it_opens_waits_tries_and_closes() -> None:
    breaker = tripped()
    assert breaker.state(0.0) == "open"
    assert not breaker.begin(1.9)
    assert breaker.retry_after_s(0.5) == 1.5
    assert breaker.state(2.0) == "half_open"
    assert breaker.begin(2.0)
    assert not breaker.begin(2.0)  # one at a time
    assert not breaker.allows(2.1)
    breaker.succeed(2.2)
    assert breaker.state(2.2) == "closed"
    assert breaker.num_opened == 1
    for _ in range(2):  # what was before it opened is forgotten
        breaker.fail(2.3)
    assert breaker.state(2.3) == "closed"


def test_each_time_in_a_row_is_twice_as_long() -> None:
    breaker = tripped()
    now = 0.0
    for wait_s in (2.0, 4.0, 6.0, 6.0):
        assert breaker.retry_after_s(now) == wait_s
        now += wait_s
        assert breaker.begin(now)
        breaker.fail(now)
    breaker.recover(now)
    assert breaker.begin(now)
    breaker.succeed(now)
    for _ in range(3):
        breaker.fail(now)
    assert breaker.retry_after_s(now) == 2.0


def test_few_failures_among_many_answers_do_not_open_it() -> None:
    breaker = Breaker(RULE)
    for _ in range(4):
        breaker.succeed(0.0)
    for _ in range(3):
        breaker.fail(0.0)
    assert breaker.state(0.0) == "closed"
    breaker.fail(0.0)
    assert breaker.state(0.0) == "open"


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker(RULE)
    breaker.fail(0.5)
    breaker.fail(0.5)
    breaker.fail(10.6)
    assert breaker.state(10.6) == "closed"


def test_a_trial_that_says_nothing_leaves_room_for_another() -> None:
    breaker = tripped()
    assert breaker.begin(2.0)
    breaker.drop()
    assert breaker.begin(2.1)  # and nobody tells what becomes of this one
    assert not breaker.begin(8.0)
    assert breaker.begin(8.2)


def test_what_was_sent_before_does_not_close_it() -> None:
    breaker = tripped()
    breaker.succeed(1.0)
    assert breaker.state(1.0) == "open"


OPERATIONS = st.sampled_from(["begin", "succeed", "fail", "drop", "recover"])


@given(st.lists(st.tuples(OPERATIONS, st.floats(0, 5)), max_size=60))
def test_whatever_happens_it_lets_requests_through_again(
    operations: list[tuple[Literal["begin", "succeed", "fail", "drop", "recover"], float]],
) -> None:
    breaker = Breaker(RULE)
    now = 0.0
    for name, passed in operations:
        now += passed
        if name == "drop":
            breaker.drop()
        else:
            may = breaker.allows(now)
            given_ = getattr(breaker, name)(now)
            if name == "begin":
                assert given_ == may
        assert breaker.allows(now) <= (breaker.state(now) != "open")
        assert 0 <= breaker.retry_after_s(now) <= RULE.max_open
        assert (breaker.state(now) == "open") == (breaker.retry_after_s(now) > 0)
    assert breaker.allows(now + 2 * RULE.max_open)
