from __future__ import annotations

import errno
import os
import threading
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from octavo.ledger import database, spill, writer
from octavo.ledger.database import Database
from octavo.ledger.record import HOUR_NS, EngineTime, Entry, Outcome
from octavo.ledger.spill import SpillFile, find_spills
from octavo.ledger.store import open_ledger
from octavo.ledger.writer import LedgerWriter
from tests.ledger.records import usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

MakeWriter = "Callable[..., LedgerWriter]"


@pytest.fixture
def make_writer(tmp_path: Path) -> Iterator[Callable[..., LedgerWriter]]:
    made: list[LedgerWriter] = []

    def make(url: str, **kwargs: Any) -> LedgerWriter:
        kwargs = {"batch_s": 0.005, "spill_folder": tmp_path / "spill"} | kwargs
        made.append(LedgerWriter(url, **kwargs))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a busy database for long."""
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    monkeypatch.setattr(writer, "_SLOW_S", 0.1)
    monkeypatch.setattr(writer, "_PAUSE_S", 0.02)


def until(is_so: Callable[[], object], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, "that takes too long"
        time.sleep(0.01)


def ids_in(url: str) -> list[str]:
    connection = Database(url).connect()
    try:
        return [row[0] for row in connection.rows("SELECT request_id FROM usage ORDER BY seq")]
    finally:
        connection.close()


async def test_what_is_flushed_is_there(
    ledger_url: str, make_writer: Callable[..., LedgerWriter]
) -> None:
    told: list[Entry] = []
    one = make_writer(ledger_url, on_durable=told.extend)
    outcome = Outcome(
        id="o", time_ns=1, request_id="r1", name="n", success=True, value=Decimal("0.5")
    )
    idle = EngineTime(
        server="s", hour=10, time_ns=9, num_devices=1, buckets={"idle": 7}, hourly_rate_nano=HOUR_NS
    )
    entries = [usage("r1"), outcome, idle, *(usage(f"{i}") for i in range(700))]
    for entry in entries:
        one.put(entry)
    assert await one.flush()
    assert told == entries
    assert (one.num_written, one.num_spilled, one.num_lost) == (len(entries), 0, 0)
    with open_ledger(ledger_url) as ledger:
        assert ledger.totals()[0].num_requests == 701
        assert ledger.outcome_totals()[0].success.value_nano == 500_000_000
        (times,) = ledger.engine_totals(["hour", "server"])
        assert (times.buckets, times.cost_nano) == ({"idle": 7}, {"idle": 7})


def test_older_device_time_does_not_replace_newer(
    ledger_url: str, make_writer: Callable[..., LedgerWriter]
) -> None:
    one = make_writer(ledger_url, batch_size=1)
    for time_ns, idle in ((5, 50), (9, 90), (7, 70)):
        one.put(
            EngineTime(
                server="s", hour=1, time_ns=time_ns, num_devices=1, buckets={"idle": idle},
                hourly_rate_nano=1,
            )
        )  # fmt: skip
    one.close()
    with open_ledger(ledger_url) as ledger:
        assert ledger.engine_totals()[0].buckets == {"idle": 90}


def test_closing_writes_what_waits(
    ledger_url: str, make_writer: Callable[..., LedgerWriter]
) -> None:
    one = make_writer(ledger_url, batch_s=5)
    for i in range(50):
        one.put(usage(f"{i}"))
    begin = time.monotonic()
    one.close()
    assert time.monotonic() - begin < 4  # nobody gathers any more
    assert ids_in(ledger_url) == [f"{i}" for i in range(50)]
    one.put(usage("late"))
    assert one.num_lost == 1


def test_values_that_no_database_takes_hold_nobody_up(
    ledger_url: str, make_writer: Callable[..., LedgerWriter], caplog: pytest.LogCaptureFixture
) -> None:
    one = make_writer(ledger_url)
    bad: list[Any] = [usage("b1", decode_ns=2**70), usage("b2", e2e_ns="soon"), usage("b3", -5)]
    for entry in [usage("1"), *bad, usage("2")]:
        one.put(entry)
    assert one.wait_durable()
    assert sorted(ids_in(ledger_url)) == ["1", "2"]
    assert (one.num_written, one.num_lost) == (2, 3)
    assert "lost" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_a_busy_sqlite_file_is_waited_for_on_disk(
    new_ledger: Callable[[str], str], make_writer: Callable[..., LedgerWriter], tmp_path: Path
) -> None:
    url = new_ledger("ledger.db")
    holder = Database(url).connect()
    holder.execute("BEGIN IMMEDIATE")
    one = make_writer(url)
    for i in range(20):
        one.put(usage(f"{i}"))
        time.sleep(0.01)
    assert one.wait_durable()
    assert one.is_down
    assert (one.num_spilled, one.num_written) == (20, 0)
    holder.execute("ROLLBACK")
    holder.close()
    until(lambda: one.num_written == 20)
    until(lambda: not list((tmp_path / "spill").glob("*.spill")))
    assert not one.is_down
    assert sorted(ids_in(url)) == sorted(f"{i}" for i in range(20))


def test_a_postgresql_server_goes_and_comes_back(
    postgres: Any, make_writer: Callable[..., LedgerWriter], tmp_path: Path
) -> None:
    url = postgres.new_ledger()
    one = make_writer(url)
    one.put(usage("before"))
    assert one.wait_durable()
    assert one.num_written == 1
    postgres.stop()
    try:
        late = make_writer(url)  # a server that starts meanwhile
        for i in range(20):
            (one if i % 2 else late).put(usage(f"{i}"))
        assert one.wait_durable()
        assert late.wait_durable()
        assert one.num_spilled + late.num_spilled == 20
    finally:
        postgres.start()
    until(lambda: one.num_written + late.num_written == 21)
    until(lambda: not list((tmp_path / "spill").glob("*.spill")))
    assert sorted(ids_in(url)) == sorted(["before", *(f"{i}" for i in range(20))])
    assert one.num_lost + late.num_lost == 0


@pytest.mark.usefixtures("impatient")
def test_a_full_queue_goes_to_disk_while_the_database_is_slow(
    new_ledger: Callable[[str], str],
    make_writer: Callable[..., LedgerWriter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = new_ledger("ledger.db")
    hold = threading.Event()
    real = writer.insert

    def slow(connection: Any, entries: Sequence[Entry]) -> None:
        assert hold.wait(20)
        real(connection, entries)

    monkeypatch.setattr(writer, "insert", slow)
    one = make_writer(url, max_queue_len=10)
    one.put(usage("first"))
    time.sleep(0.02)
    begin = time.perf_counter()
    for i in range(200):
        one.put(usage(f"{i}"))
        if i % 50 == 49:
            until(lambda num=i + 1: one.num_spilled == num)  # type: ignore[misc]
    assert time.perf_counter() - begin < 10
    assert not one.wait_durable(0.01)  # the first one is in the database's hands
    hold.set()
    until(lambda: one.num_written == 201)
    assert sorted(ids_in(url)) == sorted(["first", *(f"{i}" for i in range(200))])
    assert one.num_lost == 0


@pytest.mark.usefixtures("impatient")
def test_only_a_disk_without_room_loses_records(
    new_ledger: Callable[[str], str],
    make_writer: Callable[..., LedgerWriter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = new_ledger("ledger.db")
    holder = Database(url).connect()
    holder.execute("BEGIN IMMEDIATE")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    told: list[Entry] = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        one = make_writer(url, max_queue_len=5, batch_size=4, on_durable=told.extend)
        for i in range(100):
            one.put(usage(f"{i}"))
        time.sleep(0.3)
        for i in range(100, 110):
            one.put(usage(f"{i}"))
        assert one.num_lost > 0
        assert told == []
        # At most two batches are in the threads' hands, and fifty wait.
        assert one.num_waiting == 50
        num_kept = 110 - one.num_lost
        assert 50 <= num_kept <= 58
    until(lambda: one.num_spilled == num_kept)
    holder.execute("ROLLBACK")
    holder.close()
    until(lambda: one.num_written == num_kept)
    found = ids_in(url)
    assert len(set(found)) == len(found) == num_kept
    assert sorted(entry.request_id for entry in told) == sorted(found)  # type: ignore[union-attr]


def test_a_full_database_is_waited_for(
    new_ledger: Callable[[str], str],
    make_writer: Callable[..., LedgerWriter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = new_ledger("ledger.db")
    real = database.prepare_sqlite
    num_pages = 40

    def small(raw: Any) -> None:
        real(raw)
        raw.execute(f"PRAGMA max_page_count={num_pages}")

    monkeypatch.setattr(database, "prepare_sqlite", small)
    one = make_writer(url)
    for i in range(1000):
        one.put(usage(f"{i}"))
    assert one.wait_durable()
    assert one.num_spilled > 0
    num_pages = 10**6
    until(lambda: len(ids_in(url)) == 1000)
    assert one.num_lost == 0


def test_a_crash_between_commit_and_deletion_doubles_nothing(
    ledger_url: str, make_writer: Callable[..., LedgerWriter], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    one = make_writer(ledger_url)
    stem = one._stem
    one.close()
    left = SpillFile(stem)
    left.append([usage("a"), usage("b")])
    left.close()
    with monkeypatch.context() as patched:
        patched.setattr(spill.FoundSpill, "remove", lambda _self: None)
        first = make_writer(ledger_url)
        until(lambda: first.num_written == 2)
        first.close()
    assert len(list(find_spills(stem))) == 1
    second = make_writer(ledger_url)
    until(lambda: not list((tmp_path / "spill").glob("*.spill")))
    second.close()
    assert ids_in(ledger_url) == ["a", "b"]


def test_two_writers_share_a_ledger(
    ledger_url: str, make_writer: Callable[..., LedgerWriter]
) -> None:
    pair = [make_writer(ledger_url, batch_size=20) for _ in range(2)]
    for i in range(400):
        pair[i % 2].put(usage(f"{i}"))
        pair[0].put(usage(f"both{i}"))
        pair[1].put(usage(f"both{i}"))
    for one in pair:
        assert one.wait_durable()
    until(lambda: sum(one.num_written for one in pair) == 1200)
    with open_ledger(ledger_url) as ledger:
        until(lambda: ledger.roll_up() == 0)
        assert ledger.totals()[0].num_requests == 800


def test_a_file_that_was_moved_away_is_not_written_on(
    new_ledger: Callable[[str], str], make_writer: Callable[..., LedgerWriter], tmp_path: Path
) -> None:
    url = new_ledger("ledger.db")
    one = make_writer(url)
    one.put(usage("old"))
    assert one.wait_durable()
    (tmp_path / "ledger.db").rename(tmp_path / "archive.db")
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (tmp_path / name).rename(tmp_path / name.replace("ledger", "archive"))
    one.put(usage("new"))
    assert one.wait_durable()
    assert ids_in(url) == ["new"]
    assert ids_in(str(tmp_path / "archive.db")) == ["old"]


def test_roll_ups_and_pruning_go_on_beside(
    new_ledger: Callable[[str], str], make_writer: Callable[..., LedgerWriter]
) -> None:
    url = new_ledger("ledger.db")
    now = time.time_ns()
    one = make_writer(url, retention_days=1)
    for i in range(10):
        one.put(usage(f"{i}", time_ns=now - i * 12 * HOUR_NS))
    until(lambda: one.num_written == 10)
    # The first round may have come before the records did.
    one._roll_up_at = one._prune_at = 0.0
    until(lambda: len(ids_in(url)) in (2, 3))
    with open_ledger(url) as ledger:
        assert ledger.totals()[0].num_requests == 10


@pytest.mark.usefixtures("impatient")
def test_putting_never_waits(
    new_ledger: Callable[[str], str], make_writer: Callable[..., LedgerWriter]
) -> None:
    url = new_ledger("ledger.db")
    holder = Database(url).connect()
    holder.execute("BEGIN IMMEDIATE")
    one = make_writer(url, max_queue_len=100)
    entry = usage("a")
    longest = 0.0
    for _ in range(3000):
        begin = time.thread_time()
        one.put(entry)
        longest = max(longest, time.thread_time() - begin)
    holder.close()
    assert longest < 0.05
