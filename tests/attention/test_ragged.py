"""Attention within whole sequences against a masked softmax written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from octavo.attention.interface import AttentionSpec, BatchLayout, LayerAttention
from octavo.attention.ragged import RaggedAttention, Run, runs_of


def expected(
    layer: LayerAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool
) -> torch.Tensor:
    """One sequence: [l, h, d]."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * layer.scale
    place = torch.arange(len(q))
    distance = place[:, None] - place
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if is_causal:
        hidden |= distance < 0
    if layer.window is not None:
        hidden |= distance.abs() >= layer.window
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_sequences_do_not_see_each_other(
    is_causal: bool, window: int | None, num_kv_heads: int
) -> None:
    lengths = [1, 1, 5, 5, 5, 9, 2]
    starts = np.cumsum([0, *lengths])
    backend = RaggedAttention(is_causal=is_causal)
    spec = AttentionSpec(
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        dtype=torch.float32,
        device=torch.device("cpu"),
        block_size=1,
        windows=frozenset({window}),
    )
    assert backend.why_not(spec) is None
    layout = BatchLayout(starts, np.zeros(7, np.int64), np.zeros((7, 0), np.int64))
    meta = backend.plan(spec, layout)
    # Views into one product, as models hand them over.
    qkv = torch.randn(sum(lengths), 4 + 2 * num_kv_heads, 8)
    q, k, v = qkv.split([4, num_kv_heads, num_kv_heads], 1)
    layer = LayerAttention(0.3, window)
    found = backend.forward(layer, q, k, v, backend.allocate(spec, 0), meta)
    for start, end in itertools.pairwise(starts):
        one = (x[start:end] for x in (q, k, v))
        torch.testing.assert_close(found[start:end], expected(layer, *one, is_causal=is_causal))


def test_neighbours_of_one_length_are_one_run() -> None:
    assert runs_of([3, 3, 1, 3]) == [Run(0, 2, 3), Run(6, 1, 1), Run(7, 1, 3)]


def test_a_soft_cap_is_refused() -> None:
    spec = AttentionSpec(4, 4, 8, torch.float32, torch.device("cpu"), 1, frozenset({None}), 30.0)
    assert "soft cap" in str(RaggedAttention(is_causal=True).why_not(spec))
