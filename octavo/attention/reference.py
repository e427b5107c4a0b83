"""What the native attention computes (`kernels/cpu/src/attend.cpp`), bit for bit, by torch.

The written definition of its arithmetic, for machines where the kernels are not and for tests. The
cache and the grouping of sequences are `torch_cpu.py`'s.

A query's logits are sums along the dimensions, one by one. Keys are taken in parts of 128
positions, counted from the sequence's beginning. A part's weights are added up along 16 lanes, its
values in runs of 16 keys, one key after the other, and run after run. Parts are joined in their
order.

Shapes: g sequences, k KV heads, r rows (query tokens of all heads that share a KV head), n keys
(whole parts), p parts, d dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from octavo.attention.torch_cpu import Group, TorchAttention, TorchMetadata, make_groups
from octavo.kernels.cpu.reference import exponential, fused_, soft_cap

if TYPE_CHECKING:
    from octavo.attention.interface import AttentionSpec, BatchLayout, LayerAttention

PART, RUN, LANES = 128, 16, 16
CHUNK = 1 << 21
"""Numbers of an intermediate result that are worth making at a time."""


class ReferenceAttention(TorchAttention):
    """See the module. Cache layout: as `TorchAttention`'s."""

    name = "reference"

    def why_not(self, spec: AttentionSpec) -> str | None:
        """Serves float32 on a CPU, with a cache of float32 or bfloat16."""
        if spec.device.type != "cpu":
            return "it is a CPU's"
        if spec.dtype != torch.float32:
            return f"it computes float32, not {spec.dtype}"
        if spec.stored_dtype not in (torch.float32, torch.bfloat16):
            return f"it keeps no keys and values in {spec.stored_dtype}: --kv-cache-dtype auto"
        return None

    def plan(self, spec: AttentionSpec, layout: BatchLayout) -> TorchMetadata:
        """Slot of each token; groups follow lazily, and share no prefixes."""
        slots = torch.from_numpy(layout.slots(spec.block_size))
        return TorchMetadata(spec, layout, slots, [], np.zeros_like(layout.context_lens))

    def attend(
        self,
        layer: LayerAttention,
        q_thd: torch.Tensor,
        cache: torch.Tensor,
        meta: TorchMetadata,
    ) -> torch.Tensor:
        """See `AttentionBackend.attend`."""
        spec = meta.spec
        groups = meta.groups.get(layer.window)
        if groups is None:
            # Blocks begin with a part; where none does but the first, all are read.
            is_whole = PART % spec.block_size == 0
            alignment = PART // spec.block_size if is_whole else 1 << 40
            groups = make_groups(spec, meta.layout, layer.window, meta.num_shared_blocks, alignment)
            meta.groups[layer.window] = groups
        out_thd = torch.empty_like(q_thd)
        for group in groups:
            out_thd[group.tokens] = self._attend_group(
                layer, q_thd[group.tokens], cache, group, spec
            )
        return out_thd

    def _attend_group(
        self,
        layer: LayerAttention,
        q_thd: torch.Tensor,
        cache: torch.Tensor,
        group: Group,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        num_seqs, query_len = group.num_seqs, group.query_len
        k_heads, dim = spec.num_kv_heads, spec.head_dim
        per_kv = spec.num_heads // k_heads
        keys, values = self._gather(cache, group.block_ids, spec.dtype)
        hidden = group.mask != 0  # [g, 1, q, n]
        num_keys = hidden.shape[-1]
        more = -num_keys % PART
        hidden = F.pad(hidden, (0, more), value=True)
        # What no query sees may be anything, and counts as nothing.
        unseen = hidden.all(dim=2).view(num_seqs, -1, 1, 1)
        keys, values = (
            F.pad(each.view(num_seqs, num_keys, k_heads, dim), (0, 0, 0, 0, 0, more))
            .masked_fill_(unseen, 0.0)
            .transpose(1, 2)
            for each in (keys, values)
        )
        columns = keys.transpose(2, 3).contiguous()  # [g, k, d, n]
        values = values.contiguous()
        q = q_thd.view(num_seqs, query_len, k_heads, per_kv, dim).permute(0, 2, 1, 3, 4)
        q = q * torch.tensor(layer.scale, dtype=torch.float32, device="cpu")
        out = torch.empty_like(q)
        # Few tokens at a time, and no keys behind what they see.
        numbers = num_seqs * k_heads * per_kv * max(columns.shape[-1] // RUN * dim, 1)
        step = min(max(CHUNK // numbers, 1), query_len)
        for begin in range(0, query_len, step):
            own = hidden[:, :, begin : begin + step]
            seen = (~own).any(dim=2).any(dim=0).nonzero()
            end = -(-(int(seen[-1, -1]) + 1) // PART) * PART
            rows = q[:, :, begin : begin + step]
            shape = rows.shape
            found = attend_rows(
                rows.reshape(num_seqs, k_heads, -1, dim),
                columns[..., :end],
                values[:, :, :end],
                own[..., :end].repeat_interleave(per_kv, dim=2),
                spec.soft_cap,
            )
            out[:, :, begin : begin + step] = found.view(shape)
        return out.permute(0, 2, 1, 3, 4).reshape(num_seqs * query_len, spec.num_heads, dim)


def attend_rows(
    q: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor,
    cap: float | None,
) -> torch.Tensor:
    """Attention [g, k, r, d] of queries that are multiplied by the scale already.

    Args:
        q: [g, k, r, d].
        columns: keys [g, k, d, n], of which the first begins a part.
        values: [g, k, n, d].
        hidden: [g, 1, r, n], the keys that a query does not see.
        cap: of the logits, or None.
    """
    logits = torch.zeros(*q.shape[:3], columns.shape[-1], dtype=torch.float32, device="cpu")
    of_keys = columns.unsqueeze(2).unbind(3)
    for query, key in zip(q.unsqueeze(-1).unbind(3), of_keys, strict=True):
        fused_(logits, query, key)
    if cap is not None:
        logits = soft_cap(logits, cap)
    logits.masked_fill_(hidden, -torch.inf)
    parts = logits.view(*q.shape[:3], -1, PART)
    tops = parts.amax(dim=-1)
    weights = exponential(parts - _finite(tops).unsqueeze(-1))
    sums = _sum_lanes(weights)
    outs = _sum_values(weights, values)
    return _join(tops, sums, outs)


def _finite(tops: torch.Tensor) -> torch.Tensor:
    """0 where no key is seen: a difference to it is no number otherwise."""
    return tops.masked_fill(tops == -torch.inf, 0.0)


def _sum_lanes(weights: torch.Tensor) -> torch.Tensor:
    """[..., 128] to [...]."""
    lanes = weights.view(*weights.shape[:-1], -1, LANES)
    total = lanes[..., 0, :].clone()
    for i in range(1, PART // LANES):
        total += lanes[..., i, :]
    while total.shape[-1] > 1:
        first, second = total.chunk(2, dim=-1)
        total = first + second
    return total[..., 0]


def _sum_values(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[g, k, r, p, 128] with [g, k, n, d]: [g, k, r, p, d]."""
    num_seqs, k_heads, num_rows, num_parts, _ = weights.shape
    dim = values.shape[-1]
    by_runs = weights.view(num_seqs, k_heads, num_rows, -1, RUN, 1)
    own = values.view(num_seqs, k_heads, 1, -1, RUN, dim)
    shape = (num_seqs, k_heads, num_rows, num_parts * PART // RUN, dim)
    runs = torch.zeros(shape, dtype=torch.float32, device="cpu")
    for weight, value in zip(by_runs.unbind(4), own.unbind(4), strict=True):
        fused_(runs, weight, value)
    runs = runs.view(num_seqs, k_heads, num_rows, num_parts, -1, dim)
    total = runs[..., 0, :].clone()
    for i in range(1, PART // RUN):
        total += runs[..., i, :]
    return total


def _join(tops: torch.Tensor, sums: torch.Tensor, outs: torch.Tensor) -> torch.Tensor:
    """Largest logits and sums [g, k, r, p] of parts, and their values [g, k, r, p, d]."""
    top, total_sum, total = tops[..., 0], sums[..., 0], outs[..., 0, :]
    for i in range(1, tops.shape[-1]):
        higher = torch.maximum(top, tops[..., i])
        old = exponential(top - _finite(higher))
        own = exponential(tops[..., i] - _finite(higher))
        total = fused_(total * old.unsqueeze(-1), outs[..., i, :], own.unsqueeze(-1))
        total_sum = fused_(total_sum * old, sums[..., i], own)
        top = higher
    return total * (1.0 / total_sum).unsqueeze(-1)
