"""Attempts and escalations: kept once, summed exactly, gone after the retention."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.ledger.database import Database, DataRefusedError
from octavo.ledger.record import HOUR_NS
from octavo.ledger.store import Ledger, open_ledger
from tests.ledger.examples import SETTINGS
from tests.ledger.records import attempt, escalation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from octavo.ledger.record import AttemptRecord, EscalationRecord

_numbers = count()
judged = st.builds(
    lambda **fields: attempt(f"r{next(_numbers)}", **fields),
    time_ns=st.integers(0, 3 * HOUR_NS - 1),
    feature=st.sampled_from(["", "chat", "search"]),
    judge=st.sampled_from(["", "sure", "schema"]),
    status=st.sampled_from(["ok", "escalated", "error"]),
    cost_nano=st.integers(0, 2**40),
    next_cost_nano=st.none() | st.integers(0, 2**40),
)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with open_ledger(ledger_url) as opened:
        yield opened


def test_each_is_kept_once(ledger: Ledger) -> None:
    entries = [attempt("a"), attempt("a", 1), escalation("a"), escalation("b", score=None)]
    ledger.add(entries)
    ledger.add([*entries, escalation("a", reason="later")])
    assert ledger.escalations() == [escalation("a"), escalation("b", score=None)]
    [totals] = ledger.hybrid_totals()
    assert (totals.num_passed, totals.cheap_cost_nano, totals.saved_nano) == (2, 200, 1800)
    with pytest.raises(ConfigError, match="have no 'color'"):
        ledger.hybrid_totals(["color"])
    with pytest.raises(ConfigError, match="use feature"):
        ledger.escalations(where={"model": ["x"]})
    with pytest.raises(DataRefusedError):
        ledger.add([attempt("c", cost_nano=-1)])


def test_hostile_text_is_kept_as_text(ledger: Ledger) -> None:
    hostile = "'; DROP TABLE attempts; --\0\udc80" + "x" * 5000
    ledger.add([attempt("a", reason=hostile, feature=hostile), escalation("a", reason=hostile)])
    [found] = ledger.escalations()
    assert found.reason.startswith("'; DROP TABLE attempts; --\ufffd?x")
    assert len(found.reason.encode()) <= 1000


@SETTINGS
@given(st.lists(judged, max_size=12), st.data())
def test_sums_are_those_of_plain_python(
    new_ledger: Callable[[str], str], records: list[AttemptRecord], data: st.DataObject
) -> None:
    dear: list[EscalationRecord] = [
        escalation(record.request_id, dear_cost_nano=data.draw(st.integers(0, 2**40)))
        for record in records
        if record.status == "escalated"
    ]
    with open_ledger(new_ledger("ledger.db")) as ledger:
        ledger.add([*records, *dear])
        found = {totals.key[0]: totals for totals in ledger.hybrid_totals(["feature"])}
    costs = {record.request_id: record.dear_cost_nano for record in dear}
    for feature in ("", "chat", "search"):
        mine = [r for r in records if r.feature == feature and r.judge and r.status != "error"]
        assert (feature in found) == bool(mine)
        if not mine:
            continue
        totals = found[feature]
        passed = [r for r in mine if r.status == "ok"]
        dropped = [r for r in mine if r.status == "escalated"]
        priced = [r for r in passed if r.next_cost_nano is not None]
        assert (totals.num_passed, totals.num_escalated) == (len(passed), len(dropped))
        assert totals.cheap_cost_nano == sum(r.cost_nano for r in mine)
        assert totals.dear_cost_nano == sum(costs[r.request_id] for r in dropped)
        assert totals.num_priced == len(priced)
        assert totals.saved_nano == sum(
            (r.next_cost_nano or 0) - r.cost_nano for r in priced
        ) - sum(r.cost_nano for r in dropped)


def test_pruning_takes_what_is_old(ledger: Ledger) -> None:
    ledger.add(
        [attempt(f"r{hour}", time_ns=hour * HOUR_NS + 1) for hour in range(6)]
        + [escalation(f"r{hour}", time_ns=hour * HOUR_NS + 1) for hour in range(6)]
    )
    ledger.prune(4 * HOUR_NS + 5)
    assert sorted(record.request_id for record in ledger.escalations()) == ["r4", "r5"]
    [totals] = ledger.hybrid_totals()
    assert totals.num_passed == 2


def test_reports_are_by_hours_too(ledger: Ledger) -> None:
    ledger.add([attempt("a", time_ns=HOUR_NS), attempt("b", time_ns=2 * HOUR_NS)])
    keys = [totals.key for totals in ledger.hybrid_totals(["hour", "judge"])]
    assert keys == [("1970-01-01T01", "confident"), ("1970-01-01T02", "confident")]
    assert [totals.key for totals in ledger.hybrid_totals(["day"])] == [("1970-01-01",)]
    assert ledger.hybrid_totals(["day"], start_ns=2 * HOUR_NS)[0].num_passed == 1


def test_a_ledger_of_the_revision_before_is_brought_forward(tmp_path: Path) -> None:
    from octavo.ledger.migrate import upgrade

    url = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(Database(url), "0002")
    with open_ledger(url) as ledger:
        ledger.add([attempt("a")])
        assert ledger.hybrid_totals()[0].num_passed == 1
