"""The thread that sends: what it loses, what it says, and that nobody waits for it."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest

from octavo.observability.tracing_sender import LastWords, Sender

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WAIT_S = 5.0


class Collector:
    """An exporter: takes batches, refuses them, or hangs until it is told to give up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.is_down = False
        self.gate = threading.Event()
        self.gate.set()
        self.aborted = threading.Event()

    def export(self, batch: Sequence[int]) -> bool:
        self.gate.wait()
        if self.is_down:
            logging.getLogger("a.library").warning("nobody listens at %s", "there")
            return False
        self.batches.append(list(batch))
        return True

    def abort(self) -> None:
        self.aborted.set()
        self.gate.set()


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def words() -> Iterator[LastWords]:
    kept = LastWords("a.library")
    yield kept
    kept.close()


def sender_to(collector: Collector, **options: object) -> Sender[int]:
    settings = {"max_queue_len": 8, "batch_len": 4, "interval_s": 600.0, **options}
    return Sender("items", collector.export, abort=collector.abort, **settings)  # type: ignore[arg-type]


def eventually(is_true: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Ours; pytest listens also where nobody else does."""
    return [r.getMessage() for r in caplog.records if r.name == "octavo.telemetry"]


def test_a_full_batch_goes_at_once_and_the_rest_at_the_end(collector: Collector) -> None:
    sender = sender_to(collector)
    for item in range(6):
        sender.put(item)
    eventually(lambda: collector.batches)
    sender.close(WAIT_S)
    assert collector.batches == [[0, 1, 2, 3], [4, 5]]
    assert (sender.num_sent, sender.num_dropped, sender.num_failed) == (6, 0, 0)
    sender.put(7)
    sender.close(WAIT_S)
    assert (sender.num_sent, sender.num_dropped) == (6, 1)


def test_what_is_there_goes_after_the_interval(collector: Collector) -> None:
    sender = sender_to(collector, interval_s=0.01)
    sender.put(1)
    eventually(lambda: collector.batches == [[1]])
    sender.close(WAIT_S)


def test_a_full_queue_drops_and_counts(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.gate.clear()
    sender = sender_to(collector)
    for item in range(4):
        sender.put(item)
    eventually(lambda: not sender._queue)  # the first batch hangs in the exporter
    begin = time.perf_counter()
    for item in range(4, 100):
        sender.put(item)
    assert time.perf_counter() - begin < 0.5
    assert sender.num_dropped == 100 - 4 - 8
    collector.gate.set()
    eventually(lambda: sender.num_sent == 12)
    sender.close(WAIT_S)
    assert collector.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    [line] = caplog.messages
    assert line.startswith("88 items lost so far: 0 not taken by the collector, 88 found the queue")


def test_a_dead_collector_costs_one_line_and_says_why(
    collector: Collector, words: LastWords, caplog: pytest.LogCaptureFixture
) -> None:
    collector.is_down = True
    sender = sender_to(collector, batch_len=1, max_queue_len=1000, words=words.take)
    for item in range(200):
        sender.put(item)
    eventually(lambda: sender.num_failed == 200)
    [line] = lines(caplog)
    assert "nobody listens at there" in line
    sender.close(WAIT_S)
    assert len(lines(caplog)) == 2
    assert lines(caplog)[1].startswith("200 items lost so far: 200 not taken by the collector")
    assert not logging.getLogger("a.library").propagate  # its own 200 lines go nowhere


def test_an_exception_is_a_loss_with_its_reason(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(batch: Sequence[int]) -> bool:
        raise OSError("no route")

    collector.export = fail  # type: ignore[method-assign]
    sender = sender_to(collector, batch_len=1)
    sender.put(1)
    eventually(lambda: sender.num_failed == 1)
    sender.close(WAIT_S)
    assert "OSError: no route" in caplog.text


def test_the_end_does_not_wait_for_a_collector_that_hangs(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.gate.clear()
    sender = sender_to(collector)
    for item in range(7):
        sender.put(item)
    eventually(lambda: len(sender._queue) == 3)
    begin = time.monotonic()
    sender.close(0.1)
    assert time.monotonic() - begin < 1.0
    assert collector.aborted.is_set()
    assert "3 left at the end" in caplog.text


def test_the_end_finds_what_came_while_a_batch_was_sent(collector: Collector) -> None:
    collector.gate.clear()
    sender = sender_to(collector)
    for item in range(4):
        sender.put(item)
    eventually(lambda: not sender._queue)  # the first batch is on its way
    sender.put(4)
    closing = threading.Thread(target=sender.close, args=(WAIT_S,))
    closing.start()
    eventually(lambda: sender._is_closed)
    collector.gate.set()
    closing.join()
    assert collector.batches == [[0, 1, 2, 3], [4]]


def test_what_is_polled_comes_at_each_interval_and_at_the_end(collector: Collector) -> None:
    readings = iter(range(1000))
    sender = sender_to(
        collector, batch_len=1, interval_s=0.01, poll=lambda: [next(readings)], max_queue_len=1
    )
    eventually(lambda: len(collector.batches) >= 3)
    sender.close(WAIT_S)
    assert collector.batches == [[i] for i in range(len(collector.batches))]
    assert next(readings) == len(collector.batches)


def test_last_words_leave_the_library_as_it_was() -> None:
    library = logging.getLogger("a.library")
    kept = LastWords("a.library")
    assert not library.propagate
    library.warning("one")
    library.warning("two")
    assert (kept.take(), kept.take()) == ("two", "")
    kept.close()
    assert library.propagate
    assert library.handlers == []
