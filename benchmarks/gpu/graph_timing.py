"""Device time of calls: captured in a CUDA graph one behind the other, and replayed; medians."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def graph_ms(
    calls: Sequence[Callable[[], Any]], repeats: int = 9, *, num_warm_ups: int = 1
) -> float:
    """Milliseconds of one call; the first few are made, and compiled, before the capture.

    What a call returns is dropped, so that the next one may use its memory.
    """
    for call in calls[:num_warm_ups]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return replay_ms(graph, repeats) / len(calls)


def replay_ms(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    """Milliseconds of a graph, after a first replay that does not count."""
    graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)))
    return statistics.median(times)
