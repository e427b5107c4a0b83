from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from octavo.observability.board import Board
from octavo.observability.metrics import Metrics
from octavo.types import EngineStats

NUM = 3


def values(metrics: Metrics) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(metrics.exposition()[0].decode())
    return {(s.name, str(s.labels)): s.value for family in families for s in family.samples}


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.integers(0, NUM - 1),
            st.floats(0, 100),
            st.sampled_from(["stop", "length", "abort"]),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_many_count_as_one_would(observations: list[tuple[int, float, str, bool]]) -> None:
    boards = [Board.shared(NUM)]
    boards += [Board.attached(boards[0].fd or 0, NUM, index) for index in range(1, NUM)]
    several = [Metrics("m", EngineStats, board) for board in boards]
    one = Metrics("m", EngineStats)
    for index, value, reason, is_restarted in observations:
        if is_restarted:  # whoever comes next takes up the row
            boards[0].forget(index)
            board = Board.attached(boards[0].fd or 0, NUM, index)
            several[index] = Metrics("m", EngineStats, board)
        for metrics in (several[index], one):
            metrics.requests.inter_token_latency.observe(round(value), 2)
            metrics.requests.count_end(reason)  # type: ignore[arg-type]
    expected = {k: v for k, v in values(one).items() if k[0].startswith(("vllm:", "octavo:"))}
    for metrics in several:
        found = values(metrics)
        assert {key: found[key] for key in expected} == expected
        assert not any(name.startswith("process_") for name, _ in found)
    os.close(boards[0].fd or 0)


def test_gauges() -> None:
    first = Board.shared(NUM)
    assert first.fd is not None
    second = Board.attached(first.fd, NUM, 1)
    first.connections.value = 4
    second.connections.value = 3
    second.open_requests.value = 2
    assert first.connections.total == second.connections.total == 7
    assert first.connections.others == [3, 0]
    assert second.connections.others == [4, 0]
    assert (first.open_requests.total, first.unread_requests.total) == (2, 0)
    first.forget(1)
    first.count_restart(1)
    assert second.connections.total == 4
    assert second.open_requests.total == 0
    assert second.num_restarts == first.num_restarts == 1
    os.close(first.fd)


def test_one_alone_shares_with_nobody() -> None:
    first, second = Board.private(), Board.private()
    first.connections.value = 1
    assert second.connections.total == 0
    assert first.connections.others == []
