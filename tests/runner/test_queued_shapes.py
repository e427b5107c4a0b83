from __future__ import annotations

import pytest

from octavo.runner.queued_shapes import graph_shapes


@pytest.mark.parametrize("most", [1, 3, 4, 8, 100, 512, 5000])
@pytest.mark.parametrize("budget", [1, 100, 8192])
def test_graphs_reach_to_the_largest_batch(most: int, budget: int) -> None:
    shapes = graph_shapes(most, budget)
    assert len(set(shapes)) == len(shapes)
    decodes = [shape.num_seqs for shape in shapes if shape.is_decode]
    assert decodes == sorted(decodes)
    assert decodes[0] == 1
    assert decodes[-1] == min(most, 512)
    mixed = [shape for shape in shapes if not shape.is_decode]
    assert all(0 < shape.num_seqs <= min(most, shape.num_tokens) for shape in mixed)
    assert [shape.num_tokens for shape in mixed] == sorted(shape.num_tokens for shape in mixed)
