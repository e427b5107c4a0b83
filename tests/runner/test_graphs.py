"""Captured computations: replays follow their inputs, and share memory with one another."""

from __future__ import annotations

import pytest
import torch

from octavo.runner.graphs import Graph, GraphMaker

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def doubled(maker: GraphMaker, of: torch.Tensor) -> Graph:
    return maker.capture(lambda: (of * 2).relu())


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_each_replay_reads_what_its_input_holds_now(device: str, dtype: torch.dtype) -> None:
    maker = GraphMaker(torch.device(device))
    inputs = [torch.ones(size, 8, dtype=dtype, device=device) for size in (16, 4, 1)]
    graphs = [doubled(maker, each) for each in inputs]
    for value in (3.0, -1.0, 0.5):
        for each, graph in zip(inputs, graphs, strict=True):
            each.fill_(value)
            graph.replay()
            assert graph.output.dtype == dtype
            assert torch.equal(
                graph.output.cpu(), torch.full(each.shape, max(2 * value, 0.0)).to(dtype)
            )


@pytest.mark.gpu
def test_outputs_of_smaller_graphs_lie_in_the_largest_ones_memory() -> None:
    device = torch.device("cuda")
    maker = GraphMaker(device)
    large = torch.zeros(2**24, device=device)  # 64 MiB, and its graph two of them
    kept = [maker.capture(lambda: (large + 1) * 2)]
    before = torch.cuda.memory_reserved(device)
    kept += [doubled(maker, large[: 2**23 - 2**18 * i]) for i in range(8)]
    assert torch.cuda.memory_reserved(device) == before
    large.fill_(4)
    for graph in kept[1:]:
        graph.replay()
        assert torch.equal(graph.output, torch.full_like(graph.output, 8))


@pytest.mark.gpu
def test_a_graph_is_set_up_by_what_launches_the_same() -> None:
    calls: list[str] = []
    x = torch.ones(8, device="cuda")

    def compute() -> torch.Tensor:
        calls.append("compute")
        return x * 2

    graph = GraphMaker(x.device).capture(compute, lambda: calls.append("set up"))
    assert calls == ["set up", "compute"]
    graph.replay()
    assert torch.equal(graph.output, x * 2)
