"""Paged attention by torch's own operators: portable, and the fallback of every other backend.

Decodes are grouped by their number of KV blocks, so that one call serves many sequences and no
sequence is padded by a block or more. A chunk of several tokens is one call per sequence. Query
heads that share a KV head are packed into the query dimension, so keys are never repeated.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from octavo.attention.shared_prefix import find_shared_prefixes, join

if TYPE_CHECKING:
    from octavo.attention.interface import AttentionSpec, BatchLayout, IntArray, LayerAttention


MAX_SCRATCH_BYTES = 64 * 1024**2

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that one attention call serves: g of them, each with q query tokens and n blocks.

    Attributes:
        tokens: the batch's tokens of the group, [g * q], or a slice when they lie together.
        block_ids: [g * n].
        mask: [g, 1, q, n * block_size] additive.
        is_rest: the blocks are what follows a prefix that is attended to elsewhere.
    """

    tokens: slice | torch.Tensor
    block_ids: torch.Tensor
    mask: torch.Tensor
    num_seqs: int
    query_len: int
    is_rest: bool = False


@dataclass(frozen=True, slots=True)
class _Prefix:
    """Decodes that share blocks: their tokens [n], and the blocks [b]."""

    tokens: torch.Tensor
    block_ids: torch.Tensor


@dataclass(slots=True)
class TorchMetadata:
    """A step's slots and shared prefixes, and the groups for each sliding window.

    The groups are made when a layer first asks. Layers with a window share no prefixes.
    """

    spec: AttentionSpec
    layout: BatchLayout
    slots: torch.Tensor
    prefixes: list[_Prefix]
    num_shared_blocks: IntArray
    groups: dict[int | None, list[Group]] = field(default_factory=dict)


class TorchAttention:
    """See the module. Cache layout: [2, b, p, k, d], keys before values."""

    name = "torch"
    fuses_rotary = False

    def __init__(self) -> None:
        self._scratch: list[torch.Tensor] = []

    def why_not(self, spec: AttentionSpec) -> str | None:
        """Serves everything but a soft cap, and caches in 8 bits."""
        if spec.stored_dtype not in (spec.dtype, torch.bfloat16):
            return f"it keeps no keys and values in {spec.stored_dtype}: --kv-cache-dtype auto"
        return "no logit soft cap" if spec.soft_cap is not None else None

    def allocate(self, spec: AttentionSpec, num_blocks: int) -> torch.Tensor:
        """Zeroed memory; on a CPU pages become resident only when they are first written."""
        shape = (2, num_blocks, spec.block_size, spec.num_kv_heads, spec.head_dim)
        if spec.device.type == "cpu":
            # torch.zeros writes every page: seconds for a cache of some GiB. Anonymous memory
            # is zero without that; the tensor keeps it mapped.
            memory = mmap.mmap(-1, math.prod(shape) * spec.stored_dtype.itemsize)
            return torch.frombuffer(memory, dtype=spec.stored_dtype).view(shape)
        return torch.zeros(shape, dtype=spec.stored_dtype, device=spec.device)

    def bytes_per_block(self, spec: AttentionSpec) -> int:
        """Keys and values of one block in one layer."""
        size = spec.block_size * spec.num_kv_heads * spec.head_dim
        return 2 * size * spec.stored_dtype.itemsize

    def plan(self, spec: AttentionSpec, layout: BatchLayout) -> TorchMetadata:
        """Slot of each token; groups follow lazily, one set per window."""
        prefixes, num_shared = [], np.zeros_like(layout.context_lens)
        if spec.device.type == "cpu":  # the operator that tells its weights is the CPU's
            for shared in find_shared_prefixes(layout, spec.block_size):
                tokens = torch.from_numpy(layout.query_starts[shared.seqs])
                prefixes.append(_Prefix(tokens, torch.from_numpy(shared.block_ids.copy())))
                num_shared[shared.seqs] = len(shared.block_ids)
        device_slots = torch.from_numpy(layout.slots(spec.block_size)).to(spec.device)
        return TorchMetadata(spec, layout, device_slots, prefixes, num_shared)

    def forward(
        self,
        layer: LayerAttention,
        q_thd: torch.Tensor,
        k_tkd: torch.Tensor,
        v_tkd: torch.Tensor,
        cache: torch.Tensor,
        meta: TorchMetadata,
    ) -> torch.Tensor:
        """See `AttentionBackend.forward`."""
        self.write(k_tkd, v_tkd, cache, meta)
        return self.attend(layer, q_thd, cache, meta)

    def write(
        self, k_tkd: torch.Tensor, v_tkd: torch.Tensor, cache: torch.Tensor, meta: TorchMetadata
    ) -> None:
        """See `AttentionBackend.write`."""
        flat = cache.view(2, -1, meta.spec.num_kv_heads, meta.spec.head_dim)
        flat[0].index_copy_(0, meta.slots, k_tkd.to(cache.dtype))
        flat[1].index_copy_(0, meta.slots, v_tkd.to(cache.dtype))

    def attend(
        self,
        layer: LayerAttention,
        q_thd: torch.Tensor,
        cache: torch.Tensor,
        meta: TorchMetadata,
    ) -> torch.Tensor:
        """See `AttentionBackend.attend`."""
        spec = meta.spec
        prefixes = meta.prefixes if layer.window is None else []
        groups = meta.groups.get(layer.window)
        if groups is None:
            groups = meta.groups[layer.window] = make_groups(
                spec, meta.layout, layer.window, meta.num_shared_blocks
            )
        if len(groups) == 1 and isinstance(groups[0].tokens, slice) and not prefixes:
            return self._attend(layer, q_thd, cache, groups[0], spec)[0]
        out_thd = torch.empty_like(q_thd)
        lse_th = q_thd.new_empty(q_thd.shape[:2], dtype=torch.float32)
        for group in groups:
            out, lse = self._attend(layer, q_thd[group.tokens], cache, group, spec)
            out_thd[group.tokens] = out
            if lse is not None:
                lse_th[group.tokens] = lse
        for prefix in prefixes:
            tokens = prefix.tokens
            out, lse = self._attend_prefix(layer, q_thd[tokens], cache, prefix.block_ids, spec)
            out_thd[tokens] = join(out_thd[tokens], lse_th[tokens], out, lse)
        return out_thd

    def _attend(
        self,
        layer: LayerAttention,
        q_thd: torch.Tensor,
        cache: torch.Tensor,
        group: Group,
        spec: AttentionSpec,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Out [t, h, d], and for a group behind a shared prefix its weights' logarithms [t, h]."""
        num_seqs, query_len = group.num_seqs, group.query_len
        k_heads, dim = spec.num_kv_heads, spec.head_dim
        per_kv = spec.num_heads // k_heads
        keys, values = self._gather(cache, group.block_ids, spec.dtype)
        keys = keys.view(num_seqs, -1, k_heads, dim).transpose(1, 2)
        values = values.view(num_seqs, -1, k_heads, dim).transpose(1, 2)
        # Row r * query_len + i of the packed queries is query token i of the r-th head in the group
        # that shares a KV head, so a mask of query_len rows repeats per_kv times.
        q = q_thd.view(num_seqs, query_len, k_heads, per_kv, dim).permute(0, 2, 3, 1, 4)
        q = q.reshape(num_seqs, k_heads, per_kv * query_len, dim)
        mask = group.mask
        if group.is_rest:
            mask = mask.expand(-1, -1, per_kv, -1)
            out, lse = _flash(q, keys, values, attn_mask=mask, scale=layer.scale)
            heads = (num_seqs, spec.num_heads)
            return out.reshape(*heads, dim), lse.reshape(heads)
        if query_len > 1:
            mask = mask.repeat(1, 1, per_kv, 1)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=layer.scale)
        out = out.view(num_seqs, k_heads, per_kv, query_len, dim).permute(0, 3, 1, 2, 4)
        return out.reshape(num_seqs * query_len, spec.num_heads, dim), None

    def _attend_prefix(
        self,
        layer: LayerAttention,
        q_nhd: torch.Tensor,
        cache: torch.Tensor,
        block_ids: torch.Tensor,
        spec: AttentionSpec,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All n queries against the same blocks: out [n, h, d], logarithms of weights [n, h]."""
        num, k_heads, dim = q_nhd.shape[0], spec.num_kv_heads, spec.head_dim
        per_kv = spec.num_heads // k_heads
        keys, values = self._gather(cache, block_ids, spec.dtype)
        keys = keys.view(1, -1, k_heads, dim).transpose(1, 2)
        values = values.view(1, -1, k_heads, dim).transpose(1, 2)
        q = q_nhd.view(num, k_heads, per_kv, dim).transpose(0, 1)
        q = q.reshape(1, k_heads, num * per_kv, dim)
        out, lse = _flash(q, keys, values, scale=layer.scale)
        out = out.reshape(k_heads, num, per_kv, dim).transpose(0, 1)
        lse = lse.reshape(k_heads, num, per_kv).transpose(0, 1)
        return out.reshape(num, -1, dim), lse.reshape(num, -1)

    def _gather(
        self, cache: torch.Tensor, block_ids: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the blocks in `dtype`, valid until the next call.

        Into memory that stays: fresh memory for each layer costs more in page faults than the copy.
        """
        shape = (len(block_ids), *cache.shape[2:])
        size = math.prod(shape)
        if size * dtype.itemsize > MAX_SCRATCH_BYTES:
            keys, values = (part.index_select(0, block_ids) for part in cache)
            return keys.to(dtype), values.to(dtype)
        if not self._scratch or self._scratch[0].numel() < size:
            self._scratch = [cache.new_empty(size, dtype=dtype) for _ in range(2)]
        keys, values = (memory[:size].view(shape) for memory in self._scratch)
        for part, target in zip(cache, (keys, values), strict=True):
            if cache.dtype == dtype:
                torch.index_select(part, 0, block_ids, out=target)
            else:
                target.copy_(part.index_select(0, block_ids))
        return keys, values


def make_groups(
    spec: AttentionSpec,
    layout: BatchLayout,
    window: int | None,
    num_shared_blocks: IntArray,
    alignment: int = 1,
) -> list[Group]:
    """Group decodes by the blocks they read; every longer chunk stands alone.

    Layers without a window leave out the shared blocks of each sequence; with one, blocks begin at
    a multiple of `alignment`.
    """
    size = spec.block_size
    lens, ends = layout.query_lens, layout.seq_lens
    # First position that the sequence's first new token still sees, rounded down to a block.
    first = (
        np.zeros_like(ends) if window is None else np.maximum(layout.context_lens + 1 - window, 0)
    )
    first_block = first // size if window is not None else num_shared_blocks
    first_block = first_block // alignment * alignment
    num_blocks = (ends + size - 1) // size - first_block

    members: dict[tuple[int, int, int], list[int]] = {}
    for seq, (query_len, blocks) in enumerate(zip(lens.tolist(), num_blocks.tolist(), strict=True)):
        # Places 0 and -1 gather decodes, the latter those behind a shared prefix.
        place = -int(window is None and num_shared_blocks[seq] > 0)
        key = (query_len, blocks, place if query_len == 1 else seq + 1)
        members.setdefault(key, []).append(seq)

    groups = []
    for (query_len, blocks, place), group in members.items():
        seqs = np.asarray(group, dtype=np.int64)
        columns = first_block[seqs, None] + np.arange(blocks)
        block_ids = layout.block_tables[seqs[:, None], columns]
        query_pos = layout.context_lens[seqs, None] + np.arange(query_len)
        key_pos = first_block[seqs, None] * size + np.arange(blocks * size)
        visible = key_pos[:, None, :] <= query_pos[:, :, None]
        if window is not None:
            visible &= key_pos[:, None, :] > query_pos[:, :, None] - window
        mask = np.where(visible, np.float32(0), np.float32(-np.inf))[:, None]
        groups.append(
            Group(
                tokens=_tokens_of(layout, seqs, query_len, spec.device),
                block_ids=torch.from_numpy(block_ids.reshape(-1)).to(spec.device),
                mask=torch.from_numpy(mask).to(device=spec.device, dtype=spec.dtype),
                num_seqs=len(group),
                query_len=query_len,
                is_rest=place < 0,
            )
        )
    return groups


def _tokens_of(
    layout: BatchLayout, seqs: IntArray, query_len: int, device: torch.device
) -> slice | torch.Tensor:
    starts = layout.query_starts[seqs]
    first = int(starts[0])
    if np.array_equal(starts, first + query_len * np.arange(len(seqs))):
        return slice(first, first + query_len * len(seqs))
    tokens = starts[:, None] + np.arange(query_len)
    return torch.from_numpy(tokens.reshape(-1)).to(device)
