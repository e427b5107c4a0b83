"""Paged attention by Triton kernels of our own: the backend for GPUs.

A step's plan is host arithmetic (`work.py`), packed into one array of integers and sent in one
copy, whatever the model's windows; layers only launch. Short query chunks (decodes, above all) and
long ones are launched apart, because they want tiles of different shapes; both may be in a step.
Sections of the array begin at multiples of 16 bytes, and what changes from step to step is no
compile-time constant, so a kernel is compiled once for a model.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.attention.work import Heads, TileShape, Work, divide
from octavo.kernels.layout import ITEM_FIELDS

if TYPE_CHECKING:
    from octavo.attention.interface import AttentionSpec, BatchLayout, IntArray, LayerAttention
    from octavo.attention.work import Table

MAX_HEAD_DIM = 256
MAX_GROUP = 128
_ALIGN = 4  # integers: 16 bytes


@dataclass(frozen=True, slots=True)
class Tuning:
    """Shape of one kind of launch.

    Attributes:
        rows: query rows (tokens times heads of a group) of a tile, a power of two >= 16.
        key_tile: keys folded in at a time, a power of two >= 16.
        num_warps, num_stages: of Triton's compiler.
        programs_per_sm: programs that a launch should have for each multiprocessor.
        min_chunk: fewest keys worth a program of their own.
    """

    rows: int
    key_tile: int
    num_warps: int
    num_stages: int
    programs_per_sm: int
    min_chunk: int


def default_tuning(head_dim: int, dtype: torch.dtype) -> tuple[Tuning, Tuning]:
    """For short chunks and for long ones."""
    if dtype == torch.float32:
        wide = 16 if head_dim > 128 else 32
        return Tuning(16, wide, 4, 2, 4, 128), Tuning(32, wide, 4, 2, 4, 512)
    if head_dim > 128:
        return Tuning(16, 32, 4, 2, 2, 128), Tuning(64, 32, 4, 2, 2, 512)
    # Measured on an H100 with heads of 128: docs/decisions/0009-paged-attention-in-triton.md.
    return Tuning(16, 64, 2, 2, 2, 128), Tuning(128, 32, 4, 2, 2, 256)


@dataclass(frozen=True, slots=True)
class _Launch:
    """One kind of launch in a step, for one window."""

    tuning: Tuning
    items: torch.Tensor
    merges: torch.Tensor


@dataclass(frozen=True, slots=True)
class TritonMetadata:
    """A step on the device.

    Attributes:
        slots: [t] int32, where each token's keys and values go.
        tables: [s, width] int32 block ids.
        launches: for each window.
        parts: float32 scratch [k, rows, d] of divided tiles, used by one layer after the other.
        part_weights: [k, rows].
    """

    spec: AttentionSpec
    slots: torch.Tensor
    tables: torch.Tensor
    launches: dict[int | None, list[_Launch]]
    parts: torch.Tensor
    part_weights: torch.Tensor


class TritonAttention:
    """See the module. Cache layout: [b, 2, k, p, d], so that a block is one run of memory.

    Args:
        short, long: shapes for chunks of few and of many tokens; None: chosen for the model.
        num_sms: multiprocessors; None: the device's.
    """

    name = "triton"

    def __init__(
        self,
        short: Tuning | None = None,
        long: Tuning | None = None,
        num_sms: int | None = None,
    ) -> None:
        self._short, self._long, self._num_sms = short, long, num_sms
        self._compiled: set[tuple[AttentionSpec, int | None]] = set()

    def why_not(self, spec: AttentionSpec) -> str | None:
        """Needs a GPU that Triton compiles for."""
        if spec.device.type != "cuda":
            return f"needs a CUDA or ROCm device, not {spec.device.type}"
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if spec.head_dim > MAX_HEAD_DIM:
            return f"heads of {spec.head_dim}, at most {MAX_HEAD_DIM}"
        if spec.num_heads // spec.num_kv_heads > MAX_GROUP:
            return f"more than {MAX_GROUP} query heads to a KV head"
        return None

    def allocate(self, spec: AttentionSpec, num_blocks: int) -> torch.Tensor:
        """Zeroed memory."""
        shape = (num_blocks, 2, spec.num_kv_heads, spec.block_size, spec.head_dim)
        return torch.zeros(shape, dtype=spec.dtype, device=spec.device)

    def bytes_per_block(self, spec: AttentionSpec) -> int:
        """Keys and values of one block in one layer."""
        return 2 * spec.block_size * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize

    def plan(self, spec: AttentionSpec, layout: BatchLayout) -> TritonMetadata:
        """Slots, block tables and the work of each window: one copy to the device."""
        short, long = self._tuning(spec)
        heads = Heads(spec.num_kv_heads, spec.num_heads // spec.num_kv_heads)
        is_short = layout.query_lens <= max(short.rows // heads.group, 1)

        works: list[tuple[int | None, Tuning, Work]] = []
        for tuning, chosen in ((short, is_short), (long, ~is_short)):
            seqs = np.flatnonzero(chosen)
            if not len(seqs):
                continue
            shape = TileShape(
                tokens=_tile_rows(tuning, heads.group) // heads.group,
                key_tile=tuning.key_tile,
                num_programs=tuning.programs_per_sm * self._sms(spec.device),
                min_chunk=tuning.min_chunk,
            )
            works += [
                (window, tuning, divide(layout, seqs, window, shape, heads))
                for window in spec.windows
            ]

        width = -(-layout.block_tables.shape[1] // _ALIGN) * _ALIGN
        tables = np.zeros((len(layout.context_lens), width), np.int32)
        tables[:, : layout.block_tables.shape[1]] = layout.block_tables
        sections = [_slots(spec, layout), tables]
        for _, _, work in works:
            sections += [work.items, work.merges]
        slots, on_device_tables, *rest = _send(sections, spec.device)

        launches: dict[int | None, list[_Launch]] = {window: [] for window in spec.windows}
        for i, (window, tuning, _) in enumerate(works):
            launches[window].append(_Launch(tuning, *rest[2 * i : 2 * i + 2]))
        rows = max(work.num_part_rows for _, _, work in works)
        parts = torch.empty(
            (spec.num_kv_heads, rows, spec.head_dim), dtype=torch.float32, device=spec.device
        )
        return TritonMetadata(
            spec, slots, on_device_tables, launches, parts, torch.empty_like(parts[..., 0])
        )

    def forward(
        self,
        layer: LayerAttention,
        q_thd: torch.Tensor,
        k_tkd: torch.Tensor,
        v_tkd: torch.Tensor,
        cache: torch.Tensor,
        meta: TritonMetadata,
    ) -> torch.Tensor:
        """See `AttentionBackend.forward`. Tokens of the inputs may be apart, heads may not."""
        from octavo.kernels import paged_attention as kernels

        spec = meta.spec
        dim, page, kv_heads = spec.head_dim, spec.block_size, spec.num_kv_heads
        group = spec.num_heads // kv_heads
        padded = max(_next_power_of_2(dim), 16)
        q_thd, k_tkd, v_tkd = _packed(q_thd), _packed(k_tkd), _packed(v_tkd)
        kernels.write_kernel[(len(k_tkd),)](
            k_tkd, v_tkd, cache, meta.slots, k_tkd.stride(0), v_tkd.stride(0), cache.stride(0),
            KV_HEADS=kv_heads, KV_HEADS_PAD=_next_power_of_2(kv_heads), PAGE=page, D=dim,
            D_PAD=padded,
        )  # fmt: skip
        out_thd = torch.empty(q_thd.shape, dtype=q_thd.dtype, device=q_thd.device)
        part_rows = meta.parts.shape[1]
        launches = meta.launches[layer.window]
        if (spec, layer.window) not in self._compiled:
            # Every kernel at once, with nothing to do, so that no later step waits for a compiler.
            self._compiled.add((spec, layer.window))
            nothing = torch.full((1, ITEM_FIELDS), -1, dtype=torch.int32, device=spec.device)
            idle = [_Launch(tuning, nothing, nothing) for tuning in self._tuning(spec)]
            launches = idle + launches
        for launch in launches:
            tuning = launch.tuning
            kernels.attend_kernel[(kv_heads, len(launch.items))](
                q_thd, cache, out_thd, meta.parts, meta.part_weights, launch.items, meta.tables,
                meta.tables.stride(0), part_rows, q_thd.stride(0), cache.stride(0),
                layer.scale, spec.soft_cap or 1.0, layer.window or 0,
                HEADS=spec.num_heads, GROUP=group, PAGE=page, D=dim, D_PAD=padded,
                TILE_M=_tile_rows(tuning, group), TILE_N=tuning.key_tile,
                HAS_WINDOW=layer.window is not None, HAS_CAP=spec.soft_cap is not None,
                num_warps=tuning.num_warps, num_stages=tuning.num_stages,
            )  # fmt: skip
            # The next launch of this step writes to the same parts, after this merge has read them.
            if len(launch.merges):
                kernels.merge_kernel[(spec.num_heads, len(launch.merges))](
                    out_thd, meta.parts, meta.part_weights, launch.merges, part_rows,
                    HEADS=spec.num_heads, GROUP=group, D=dim, D_PAD=padded, PARTS=16,
                )  # fmt: skip
        return out_thd

    def _tuning(self, spec: AttentionSpec) -> tuple[Tuning, Tuning]:
        short, long = default_tuning(spec.head_dim, spec.dtype)
        return self._short or short, self._long or long

    def _sms(self, device: torch.device) -> int:
        if self._num_sms is None:
            self._num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        return self._num_sms


def _slots(spec: AttentionSpec, layout: BatchLayout) -> Table:
    """[t] block * block_size + place in the block."""
    lens = layout.query_lens
    seq_of_token = np.repeat(np.arange(len(lens)), lens)
    offset = np.arange(layout.query_starts[-1]) - layout.query_starts[seq_of_token]
    position = layout.context_lens[seq_of_token] + offset
    block = layout.block_tables[seq_of_token, position // spec.block_size]
    slots: IntArray = block * spec.block_size + position % spec.block_size
    return slots.astype(np.int32)


def _send(sections: list[Table], device: torch.device) -> list[torch.Tensor]:
    """All sections in one copy; what comes back are views of one tensor."""
    starts, total = [], 0
    for section in sections:
        starts.append(total)
        total += -(-section.size // _ALIGN) * _ALIGN
    # torch's pinned memory is not handed out again before a copy from it is done.
    host = torch.empty(total, dtype=torch.int32, pin_memory=device.type == "cuda")
    flat: Any = host.numpy()
    for start, section in zip(starts, sections, strict=True):
        flat[start : start + section.size] = section.reshape(-1)
    on_device = host.to(device, non_blocking=True)
    return [
        on_device[start : start + section.size].view(section.shape)
        for start, section in zip(starts, sections, strict=True)
    ]


def _packed(x_tjd: torch.Tensor) -> torch.Tensor:
    """With the heads of a token side by side; a copy where they are not."""
    if x_tjd.stride(2) == 1 and x_tjd.stride(1) == x_tjd.shape[2]:
        return x_tjd
    return x_tjd.contiguous()


def _tile_rows(tuning: Tuning, group: int) -> int:
    return max(tuning.rows, _next_power_of_2(group))


def _next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
