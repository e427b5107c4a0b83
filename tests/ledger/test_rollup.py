"""Roll-ups and pruning against plain Python over all records that ever were."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.ledger import database, rollup
from octavo.ledger.database import Database, DatabaseUnavailableError
from octavo.ledger.groups import time_text
from octavo.ledger.record import HOUR_NS, NANO, Outcome, UsageRecord
from octavo.ledger.store import Ledger, open_ledger
from octavo.ledger.totals import INPUT_EDGES, OutcomeTotals, Side, Totals
from octavo.ledger.writes import insert_usage
from tests.ledger.examples import SETTINGS
from tests.ledger.records import usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

FIRST = 490_000  # hours since 1970; 2025
NUM_HOURS = 90  # three days and something

_numbers = count()


@pytest.fixture(autouse=True, scope="module")
def fast_disk() -> Iterator[None]:
    """Nothing crashes here, so the disk need not be waited for."""
    with pytest.MonkeyPatch.context() as patched:
        real = database.prepare_sqlite

        def prepare(raw: Any) -> None:
            real(raw)
            raw.execute("PRAGMA synchronous=OFF")

        patched.setattr(database, "prepare_sqlite", prepare)
        yield


few = st.sampled_from
times = st.integers(FIRST * HOUR_NS, (FIRST + NUM_HOURS) * HOUR_NS - 1) | st.builds(
    lambda hour, shift: (FIRST + hour) * HOUR_NS + shift,
    st.integers(1, NUM_HOURS - 1),
    few([-1, 0]),
)
records = st.builds(
    lambda **fields: usage(f"r{next(_numbers)}", **fields),
    time_ns=times,
    parent_id=few(["", "p"]),
    feature=few(["", "chat", "search"]),
    tenant=few(["", "a"]),
    key=st.just(""),
    session_id=few(["", "", "s1", "s2"]),
    trace_id=few(["", "", "t1"]),
    tags=few([{}, {"team": "x"}, {"team": "y", "a.b": "z"}]),
    model=few(["m1", "m2"]),
    prefill_ns=st.integers(0, 2**50),
    decode_ns=st.integers(0, 2**50),
    waste_ns=st.integers(0, 9),
    num_input_tokens=few([0, 5, *INPUT_EDGES, *(edge + 1 for edge in INPUT_EDGES)]),
    finish_reason=few(["stop", "abort"]),
    hourly_rate_nano=few([0, 1, 2_500_000_001]),
    currency=few(["USD", "EUR"]),
)
joins = few(
    [{"session_id": "s1"}, {"session_id": "s2"}, {"trace_id": "t1"}, {"request_id": "p"},
     {"request_id": "nobody"}]
)  # fmt: skip
outcomes = st.builds(
    lambda ids, time_ns, name, success, value: Outcome(
        id=f"o{next(_numbers)}", time_ns=time_ns, name=name, success=success, value=value, **ids
    ),
    joins,
    times,
    few(["solved", "liked"]),
    st.booleans(),
    st.none() | st.decimals(-5, 5, places=9),
)
aligned = st.none() | st.integers(-1, NUM_HOURS + 1).map(lambda hour: (FIRST + hour) * HOUR_NS)
groups = st.lists(
    few(["feature", "tenant", "model", "finish_reason", "backend", "hour", "day", "month"]),
    max_size=3,
    unique=True,
)


def text_of(record: UsageRecord, name: str) -> str:
    if name in ("hour", "day", "month"):
        return time_text(record.time_ns // HOUR_NS, name)
    if name.startswith("tag:"):
        return record.tags.get(name[4:], "")
    value: str = getattr(record, {"session": "session_id", "trace": "trace_id"}.get(name, name))
    return value


def is_in(record: UsageRecord, start_ns: int | None, end_ns: int | None) -> bool:
    return (start_ns or 0) <= record.time_ns < (2**62 if end_ns is None else end_ns)


def expected_totals(
    kept: Sequence[UsageRecord],
    by: Sequence[str],
    start_ns: int | None = None,
    end_ns: int | None = None,
    edges: Sequence[int] = (),
) -> list[Totals]:
    cells: dict[Any, Totals] = {}
    for record in kept:
        if not is_in(record, start_ns, end_ns):
            continue
        key = tuple(text_of(record, name) for name in by)
        band = sum(record.num_input_tokens > edge for edge in edges)
        total = cells.setdefault(
            (key, record.currency, band), Totals(key=key, currency=record.currency, band=band)
        )
        total.num_requests += 1
        for name in rollup.USAGE_SUMS[:-1]:
            setattr(total, name, getattr(total, name) + getattr(record, name))
        # The price once more, in Decimal: dollars per hour, hours, rounded to nine decimals.
        hours = Decimal(record.prefill_ns + record.decode_ns) / 3600
        cost = (Decimal(record.hourly_rate_nano) * hours).scaleb(-9)
        total.cost_nano += int(cost.quantize(Decimal(1), ROUND_HALF_UP))
    return [cells[key] for key in sorted(cells)]


def joined(record: UsageRecord, outcome: Outcome) -> bool:
    if outcome.request_id:
        return outcome.request_id in (record.request_id, record.parent_id)
    if outcome.session_id:
        return outcome.session_id == record.session_id
    return outcome.trace_id == record.trace_id


def expected_outcomes(
    kept: Sequence[UsageRecord],
    given_outcomes: Sequence[Outcome],
    by: Sequence[str],
    start_ns: int | None,
    end_ns: int | None,
) -> list[OutcomeTotals]:
    cells: dict[Any, OutcomeTotals] = {}

    def side(record: UsageRecord, name: str, success: bool) -> Side:
        key = tuple(text_of(record, field) for field in by)
        total = cells.setdefault(
            (key, name, record.currency),
            OutcomeTotals(key=key, name=name, currency=record.currency),
        )
        return total.success if success else total.failure

    links: dict[tuple[str, str], bool] = defaultdict(bool)
    by_id = {record.request_id: (i, record) for i, record in enumerate(kept)}
    for outcome in given_outcomes:
        mine = [(r.time_ns, i) for i, r in enumerate(kept) if joined(r, outcome)]
        for _, i in mine:
            links[kept[i].request_id, outcome.name] |= outcome.success
        if mine and is_in(last := kept[max(mine)[1]], start_ns, end_ns):
            counted = side(last, outcome.name, outcome.success)
            counted.num_outcomes += 1
            counted.value_nano += outcome.value_nano or 0
    for (request_id, name), success in links.items():
        record = by_id[request_id][1]
        if is_in(record, start_ns, end_ns):
            its = side(record, name, success)
            its.num_requests += 1
            its.device_ns += record.total_ns
            its.cost_nano += record.cost_nano
    return [cells[key] for key in sorted(cells)]


def copy_of(empty_ledger: Path, folder: Path) -> Ledger:
    path = folder / f"{next(_numbers)}.db"
    shutil.copy(empty_ledger, path)
    return open_ledger(str(path))


def work_a_bit(ledger: Ledger, data: st.DataObject) -> None:
    """Roll up and prune, in pieces of any size and in any order."""
    connection = Database(ledger.name).connect()
    for _ in range(data.draw(st.integers(0, 4))):
        num = data.draw(st.integers(1, 8))
        if data.draw(st.booleans()):
            rollup.roll_up(connection, num)
        else:
            rollup.prune(connection, data.draw(times), num)
    connection.close()


@SETTINGS
@given(data=st.data())
def test_reports_say_the_same_whatever_was_rolled_up_and_pruned(
    data: st.DataObject, empty_ledger: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = data.draw(st.lists(records, max_size=14))
    came = data.draw(st.lists(outcomes, max_size=6))
    with copy_of(empty_ledger, tmp_path_factory.getbasetemp()) as ledger:
        ledger.add_usage(kept)
        ledger.add_outcomes(came)
        for _ in range(3):
            by, start, end = data.draw(groups), data.draw(aligned), data.draw(aligned)
            edges = data.draw(st.lists(few(INPUT_EDGES), max_size=2, unique=True))
            assert ledger.totals(by, start, end, edges=edges) == expected_totals(
                kept, by, start, end, edges
            )
            assert ledger.outcome_totals(by, start, end) == expected_outcomes(
                kept, came, by, start, end
            )
            alone = [o for o in came if not any(joined(record, o) for record in kept)]
            assert ledger.num_unmatched_outcomes() == len(alone)
            work_a_bit(ledger, data)


@SETTINGS
@given(data=st.data())
def test_late_records_count_once_wherever_the_watermark_is(
    data: st.DataObject, empty_ledger: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept: list[UsageRecord] = []
    came: list[Outcome] = []
    with copy_of(empty_ledger, tmp_path_factory.getbasetemp()) as ledger:
        for _ in range(data.draw(st.integers(1, 4))):
            new = data.draw(st.lists(records, max_size=5))
            kept += new
            # Sent again, as after a crash, before anything is pruned.
            ledger.add_usage([*new, *new])
            came += (more := data.draw(st.lists(outcomes, max_size=3)))
            ledger.add_outcomes([*more, *more])
            work_a_bit(ledger, data)
            by = data.draw(groups)
            assert ledger.totals(by) == expected_totals(kept, by)
            # When an outcome comes after its requests are gone, nobody can join them any more; but
            # each is counted once.
            sides = [s for t in ledger.outcome_totals(by) for s in (t.success, t.failure)]
            num = sum(side.num_outcomes for side in sides) + ledger.num_unmatched_outcomes()
            assert num == len(came)


@SETTINGS
@given(data=st.data())
def test_raw_rows_answer_for_sessions_tags_and_parts_of_hours(
    data: st.DataObject, empty_ledger: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = data.draw(st.lists(records, max_size=10))
    start, end, gone = data.draw(st.none() | times), data.draw(st.none() | times), data.draw(times)
    by = data.draw(
        st.lists(few(["session", "trace", "route", "tag:team", "tag:a.b", "day"]), unique=True)
    )
    with copy_of(empty_ledger, tmp_path_factory.getbasetemp()) as ledger:
        ledger.add_usage(kept)
        was_pruned = ledger.prune(gone) > 0
        horizon = gone // HOUR_NS * HOUR_NS if was_pruned else 0
        if set(by) <= {"day"}:
            whole = [time for time in (start, end) if time is None or time % HOUR_NS == 0]
            is_known = len(whole) == 2 or min(t for t in (start, end) if t is not None) >= horizon
        else:
            is_known = (start or 0) >= horizon
        if is_known:
            assert ledger.totals(by, start, end) == expected_totals(kept, by, start, end)
        elif not set(by) <= {"day"}:
            with pytest.raises(ConfigError, match="cannot be told before"):
                ledger.totals(by, start, end)
        later = max(horizon, start or 0)
        assert ledger.totals(by, later, end) == expected_totals(kept, by, later, end)


def test_postgresql_says_what_python_says(postgres: Any) -> None:
    """The same statements on the other database: one long example instead of many short ones."""
    examples: dict[str, Any] = {}

    @settings(SETTINGS, max_examples=2, derandomize=True)
    @given(st.lists(records, min_size=40, max_size=40), st.lists(outcomes, min_size=20))
    def draw(drawn: list[UsageRecord], more: list[Outcome]) -> None:
        examples.update(kept=drawn, came=more)

    draw()
    kept, came = examples["kept"], examples["came"]
    by_lists = (["feature", "hour"], ["model", "month"], [], ["tenant", "day", "currency"])
    url = postgres.new_ledger()
    with open_ledger(url) as ledger:
        ledger.add_usage(kept)
        ledger.add_outcomes(came)
        connection = Database(url).connect()
        start, end = (FIRST + 3) * HOUR_NS, (FIRST + 25) * HOUR_NS
        for step in range(4):
            if step == 0:
                by = ["session", "tag:team", "route", "hour"]
                odd = (start + 7, end + NANO)
                assert ledger.totals(by, *odd) == expected_totals(kept, by, *odd)
            for by in by_lists:
                for span in ((None, None), (start, end)):
                    edges = INPUT_EDGES[2:4]
                    assert ledger.totals(by, *span, edges=edges) == expected_totals(
                        kept, by, *span, edges
                    )
                    assert ledger.outcome_totals(by, *span) == expected_outcomes(
                        kept, came, by, *span
                    )
            rollup.roll_up(connection, 15)
            rollup.prune(connection, (FIRST + 8 * step) * HOUR_NS, 6)
        connection.close()


def test_amounts_beyond_64_bits_add_up(ledger_url: str) -> None:
    """The sum of all days may be larger than what one column holds."""
    big = 2**53
    kept = [
        usage(
            f"{i}-{j}",
            time_ns=(FIRST + 24 * i) * HOUR_NS,
            prefill_ns=big,
            decode_ns=big,
            e2e_ns=big,
        )
        for i in range(3)
        for j in range(400)
    ]
    with open_ledger(ledger_url) as ledger:
        ledger.add_usage(kept)
        for _ in range(2):
            (total,) = ledger.totals()
            assert total.prefill_ns == 3 * 400 * big > 2**63
            assert total.cost_nano == sum(record.cost_nano for record in kept)
            ledger.roll_up()


def test_two_roll_ups_at_once_add_nothing_twice(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        ledger.add_usage([usage(f"{i}") for i in range(10)])
        first, second = (Database(ledger_url).connect() for _ in range(2))
        newest = rollup.visible_seq(first)
        if not first.is_sqlite:
            # While one process is at it the others go on with something else.
            with first.transaction():
                assert rollup._claim(first, "rolled_seq") == 0
                assert rollup.roll_up(second) == 0
        assert rollup.roll_up(second) == newest == 10
        assert rollup.roll_up(first) == 0
        assert ledger.totals()[0].num_requests == 10
        first.close()
        second.close()


def test_a_row_that_is_committed_late_is_not_passed_over(postgres: Any) -> None:
    """PostgreSQL numbers rows before they are visible."""
    url = postgres.new_ledger()
    with open_ledger(url) as ledger:
        slow, other = (Database(url).connect() for _ in range(2))
        slow.execute("BEGIN")
        insert_usage(slow, [usage("slow")])
        ledger.add_usage([usage("fast")])
        other.execute("SET lock_timeout = '100ms'")
        with pytest.raises(DatabaseUnavailableError, match="lock timeout"):
            rollup.roll_up(other)
        slow.execute("COMMIT")
        assert rollup.roll_up(other) == 2
        assert ledger.totals()[0].num_requests == 2
        slow.close()
        other.close()


def test_a_ledger_stays_as_large_as_its_retention(new_ledger: Callable[[str], str]) -> None:
    url = new_ledger("ledger.db")
    path = Database(url).path
    assert path is not None
    sizes = []
    with open_ledger(url) as ledger:
        for day in range(8):
            time_ns = (FIRST + 24 * day) * HOUR_NS
            ledger.add_usage([usage(f"{day}-{i}", time_ns=time_ns + i) for i in range(1000)])
            ledger.prune(time_ns - 24 * HOUR_NS)
            sizes.append(os.path.getsize(path))  # noqa: PTH202
        assert ledger.totals()[0].num_requests == 8000
    assert sizes[-1] <= 1.2 * sizes[3]


def test_pruning_reads_the_oldest_rows_alone(new_ledger: Callable[[str], str]) -> None:
    """SQLite would go through all rows up to the watermark for every piece."""
    connection = database.Database(new_ledger("ledger.db")).connect()
    freeze = rollup._FREEZE_COSTS
    for statement, num in (
        (rollup._LAST_IN_BATCH, len(rollup.JOINS) + 1),
        (freeze[freeze.index("SELECT") : freeze.index("ON CONFLICT")], len(rollup.JOINS)),
    ):
        rows = connection.rows(f"EXPLAIN QUERY PLAN {statement}", (5, 5) * num)
        plan = [row[3] for row in rows if " u USING" in row[3]]
        assert sum("usage_time_ns (time_ns<?)" in line for line in plan) == len(rollup.JOINS)
        assert not [line for line in plan if "rowid<" in line]
    connection.close()
