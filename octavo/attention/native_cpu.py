"""Paged attention by the native CPU kernels, for layers that torch computes otherwise.

The same kernels and the same cache as in a recorded step (`runner/native_plan.py`), called layer by
layer. src/plan.h has the cache's layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from octavo.kernels import cpu
from octavo.kernels.cpu.memory import large_pages
from octavo.kernels.cpu.plan import DTYPES, Kind, Op, Plan, Step, address, cache_bytes

if TYPE_CHECKING:
    from octavo.attention.interface import AttentionSpec, BatchLayout, IntArray, LayerAttention

_LARGE_BYTES = 32 * 1024**2
"""Of a layer's cache, from which on large pages are worth their first byte's 2 MiB."""


@dataclass(frozen=True, slots=True)
class NativeMetadata:
    """A step's places, as the kernels take them; `step` points into the arrays."""

    spec: AttentionSpec
    step: Step
    arrays: tuple[IntArray, ...]


class NativeAttention:
    """See the module. Cache layout: [b, k, unit]; bytes, where keys and values are int8."""

    name = "native"
    fuses_rotary = False

    def why_not(self, spec: AttentionSpec) -> str | None:
        """Serves float32 and bfloat16 on a CPU, where the library is."""
        if spec.device.type != "cpu":
            return "it is a CPU's"
        if spec.dtype not in (torch.float32, torch.bfloat16):
            return f"it computes float32 and bfloat16, not {spec.dtype}"
        if spec.stored_dtype not in DTYPES:
            return f"it keeps no keys and values in {spec.stored_dtype}: --kv-cache-dtype auto"
        return cpu.why_not()

    def allocate(self, spec: AttentionSpec, num_blocks: int) -> torch.Tensor:
        """Zeroed memory, whose pages become resident only when they are first written."""
        memory = large_pages(num_blocks * self.bytes_per_block(spec), _LARGE_BYTES)
        dtype = torch.uint8 if spec.stored_dtype == torch.int8 else spec.stored_dtype
        return memory.view(dtype).view(num_blocks, spec.num_kv_heads, -1)

    def bytes_per_block(self, spec: AttentionSpec) -> int:
        """Keys and values of one block in one layer."""
        return cache_bytes(spec.stored_dtype, spec.num_kv_heads, spec.head_dim, spec.block_size)

    def plan(self, spec: AttentionSpec, layout: BatchLayout) -> NativeMetadata:
        """Slot of each token, and the layout."""
        slots = layout.slots(spec.block_size)
        arrays = (
            slots.astype("int64"),
            layout.query_starts.astype("int64"),
            layout.context_lens.astype("int64"),
            layout.block_tables.astype("int64", order="C"),
        )
        step = Step(
            num_tokens=len(slots),
            num_seqs=len(layout.context_lens),
            table_width=layout.block_tables.shape[1],
            slots=address(arrays[0]),
            query_starts=address(arrays[1]),
            context_lens=address(arrays[2]),
            block_tables=address(arrays[3]),
        )
        return NativeMetadata(spec, step, arrays)

    def forward(
        self,
        layer: LayerAttention,
        q_thd: torch.Tensor,
        k_tkd: torch.Tensor,
        v_tkd: torch.Tensor,
        cache: torch.Tensor,
        meta: NativeMetadata,
    ) -> torch.Tensor:
        """See `AttentionBackend.forward`."""
        self.write(k_tkd, v_tkd, cache, meta)
        return self.attend(layer, q_thd, cache, meta)

    def write(
        self, k_tkd: torch.Tensor, v_tkd: torch.Tensor, cache: torch.Tensor, meta: NativeMetadata
    ) -> None:
        """See `AttentionBackend.write`."""
        packed = torch.cat((k_tkd, v_tkd), dim=1).float().contiguous()
        op = _op(Kind.ROTATE, meta.spec, cache)
        op.num_heads, op.out = 0, packed.data_ptr()
        op.width = math.prod(packed.shape[1:])
        Plan([op]).run(meta.step)

    def attend(
        self,
        layer: LayerAttention,
        q_thd: torch.Tensor,
        cache: torch.Tensor,
        meta: NativeMetadata,
    ) -> torch.Tensor:
        """See `AttentionBackend.attend`."""
        spec = meta.spec
        out = torch.empty(q_thd.shape, dtype=torch.float32, device="cpu")
        queries = q_thd.float().contiguous()
        op = _op(Kind.ATTEND, spec, cache)
        op.input, op.in_width = queries.data_ptr(), spec.num_heads * spec.head_dim
        op.out, op.width = out.data_ptr(), spec.num_heads * spec.head_dim
        op.window = layer.window or 0
        op.scale, op.soft_cap = layer.scale, spec.soft_cap or 0.0
        Plan([op]).run(meta.step)
        return out.to(q_thd.dtype)


def _op(kind: Kind, spec: AttentionSpec, cache: torch.Tensor) -> Op:
    return Op(
        kind=kind,
        dtype=DTYPES[spec.stored_dtype],
        cache=cache.data_ptr(),
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        block_size=spec.block_size,
    )
