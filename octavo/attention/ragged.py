"""Attention within whole sequences that lie one behind the other, without padding and without a
KV cache: for texts that are pooled, of which nothing is kept.

Sequences of equal length that are neighbours are one call of torch's attention, on a view. Batches
in order of length therefore need few calls; measured on two cores with sentences of 5 to 40
tokens, that takes 0.4 to 0.7 of the time of a padded batch with a mask, and of one call a sequence.

Shape suffixes as in `interface.py`, and n: sequences of one length; l: their length.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.attention.interface import AttentionSpec, BatchLayout, LayerAttention


class Run(NamedTuple):
    """Neighbours of one length: the first token, how many sequences, and their length."""

    start: int
    num_seqs: int
    length: int


class RaggedAttention:
    """An `AttentionBackend` for steps of whole sequences; `cache` arguments are left alone.

    Args:
        is_causal: whether a token sees only itself and those before it.
    """

    name = "ragged"
    fuses_rotary = False

    def __init__(self, *, is_causal: bool) -> None:
        self.is_causal = is_causal

    def why_not(self, spec: AttentionSpec) -> str | None:
        """See `AttentionBackend`."""
        if spec.soft_cap is not None:
            return "it has no soft cap of attention logits"
        return None

    def allocate(self, spec: AttentionSpec, num_blocks: int) -> torch.Tensor:
        """An empty tensor: nothing is kept."""
        return torch.empty(0, device=spec.device)

    def bytes_per_block(self, spec: AttentionSpec) -> int:
        """None."""
        return 0

    def plan(self, spec: AttentionSpec, layout: BatchLayout) -> list[Run]:
        """See `AttentionBackend`; the sequences must be whole."""
        assert not layout.context_lens.any()
        return runs_of(layout.query_lens.tolist())

    def forward(
        self,
        layer: LayerAttention,
        q_thd: torch.Tensor,
        k_tkd: torch.Tensor,
        v_tkd: torch.Tensor,
        cache: torch.Tensor,
        meta: list[Run],
    ) -> torch.Tensor:
        """[t, h, d]: each query with the keys and values of its sequence."""
        out_thd = torch.empty(q_thd.shape, dtype=q_thd.dtype, device=q_thd.device)
        is_grouped = k_tkd.shape[1] != q_thd.shape[1]
        for start, num_seqs, length in meta:
            end = start + num_seqs * length
            q_nhld, k_nkld, v_nkld = (
                x[start:end].view(num_seqs, length, *x.shape[1:]).transpose(1, 2)
                for x in (q_thd, k_tkd, v_tkd)
            )
            has_window = layer.window is not None and layer.window < length
            out_nhld = F.scaled_dot_product_attention(
                q_nhld,
                k_nkld,
                v_nkld,
                attn_mask=self._window_mask(layer, length, q_thd.device) if has_window else None,
                is_causal=self.is_causal and not has_window and length > 1,
                scale=layer.scale,
                enable_gqa=is_grouped,
            )
            out_nlhd = out_nhld.transpose(1, 2)
            out_thd[start:end].view(out_nlhd.shape).copy_(out_nlhd)
        return out_thd

    def write(
        self, k_tkd: torch.Tensor, v_tkd: torch.Tensor, cache: torch.Tensor, meta: list[Run]
    ) -> None:
        """Nothing is kept."""

    def attend(
        self, layer: LayerAttention, q_thd: torch.Tensor, cache: torch.Tensor, meta: list[Run]
    ) -> torch.Tensor:
        """Without a cache there is nothing to attend to: `forward` does both."""
        raise NotImplementedError

    def _window_mask(
        self, layer: LayerAttention, length: int, device: torch.device
    ) -> torch.Tensor:
        """[l, l]: which keys each query sees."""
        assert layer.window is not None
        positions = torch.arange(length, device=device)
        distance = positions[:, None] - positions
        if self.is_causal:
            return (distance >= 0) & (distance < layer.window)
        return distance.abs() < layer.window


def runs_of(lengths: Sequence[int]) -> list[Run]:
    """Neighbours of one length, in order."""
    runs: list[Run] = []
    start = 0
    for length, group in groupby(lengths):
        num_seqs = sum(1 for _ in group)
        runs.append(Run(start, num_seqs, length))
        start += num_seqs * length
    return runs
