"""Paged attention by Triton kernels of our own: the backend for GPUs.

A step's plan is host arithmetic (`work.py`), packed into one array of integers and sent in one
copy, whatever the model's windows; layers only launch. Short query chunks (decodes, above all) and
long ones are launched apart, because they want tiles of different shapes; both may be in a step.
Sections of the array begin at multiples of 16 bytes, and what changes from step to step is no
compile-time constant, so a kernel is compiled once for a model.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.attention import hopper_decodes, hopper_prompts
from octavo.attention.interface import StepTensors
from octavo.attention.planner import Planner
from octavo.attention.sections import ALIGN, fill, offsets, views
from octavo.attention.triton_work import Launch, PlannedWork, Scratch
from octavo.attention.tunings import Kind, Sharing, Tuning, Tunings, tile_rows
from octavo.kernels.layout import ITEM_FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from octavo.attention.interface import (
        AttentionSpec,
        BatchLayout,
        IntArray,
        LayerAttention,
        RotaryArgs,
    )
    from octavo.attention.shared_prefix import SharedPrefix
    from octavo.attention.triton_work import TritonMetadata
    from octavo.attention.work import StepShape, Table

MAX_HEAD_DIM = 256
MAX_GROUP = 128


def default_tunings(head_dim: int, dtype: torch.dtype) -> Tunings:
    """For a model's heads and the type of its queries."""
    if dtype == torch.float32:
        wide = 16 if head_dim > 128 else 32
        return Tunings(Tuning(16, wide, 4, 2, 4, 128), Tuning(32, wide, 4, 2, 4, 512, 4, 4))
    if head_dim > 128:
        return Tunings(Tuning(16, 32, 4, 2, 2, 128), Tuning(64, 32, 4, 2, 2, 512, 4, 4))
    # Measured with heads of 128: docs/decisions/0009-paged-attention-in-triton.md.
    short = Tuning(16, 32, 2, 3, 2, 128, looks_ahead=True)
    return Tunings(
        short=short,
        long=Tuning(128, 32, 4, 3, 2, 256, 8, 4, looks_ahead=True),
        many=replace(short, num_stages=4, merged_parts=8, max_chunk=512, most_per_sm=4),
    )


class TritonAttention:
    """See the module. Cache layout: [b, 2, k, p, d], so that a block is one run of memory.

    Args:
        tunings: shapes of launches; None: chosen for the model.
        num_sms: multiprocessors; None: the device's.
        sharing: when prefixes are shared.
    """

    name = "triton"
    fuses_rotary = True
    extends_tables = False

    def __init__(
        self,
        tunings: Tunings | None = None,
        num_sms: int | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self._tunings, self._num_sms = tunings, num_sms
        self._sharing = sharing or Sharing()
        self._planners: dict[AttentionSpec, Planner] = {}
        self._scratch: dict[AttentionSpec, Scratch] = {}
        self._compiled: set[tuple[AttentionSpec, int | None]] = set()

    def why_not(self, spec: AttentionSpec) -> str | None:
        """Needs a GPU that Triton compiles for."""
        if spec.device.type != "cuda":
            return f"needs a CUDA or ROCm device, not {spec.device.type}"
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if spec.stored_dtype not in (spec.dtype, torch.float8_e4m3fn):
            return f"keys and values are kept in {spec.dtype} or fp8, not {spec.stored_dtype}"
        if spec.head_dim > MAX_HEAD_DIM:
            return f"heads of {spec.head_dim}, at most {MAX_HEAD_DIM}"
        if spec.num_heads // spec.num_kv_heads > MAX_GROUP:
            return f"more than {MAX_GROUP} query heads to a KV head"
        return None

    def describe(self, spec: AttentionSpec) -> str:
        """For the log, behind the name: which kernels compute prompts, and graphs of decodes."""
        reasons = {
            "prompts": hopper_prompts.why_not(spec),
            "decodes": hopper_decodes.why_not(spec),
        }
        return "".join(
            f", {what} by the kernel for {f'all GPUs ({reason})' if reason else 'Hopper'}"
            for what, reason in reasons.items()
        )

    def allocate(self, spec: AttentionSpec, num_blocks: int) -> torch.Tensor:
        """Zeroed memory."""
        shape = (num_blocks, 2, spec.num_kv_heads, spec.block_size, spec.head_dim)
        return torch.zeros(shape, dtype=spec.stored_dtype, device=spec.device)

    def bytes_per_block(self, spec: AttentionSpec) -> int:
        """Keys and values of one block in one layer."""
        size = spec.block_size * spec.num_kv_heads * spec.head_dim
        return 2 * size * spec.stored_dtype.itemsize

    def plan(
        self, spec: AttentionSpec, layout: BatchLayout, pad_to: StepShape | None = None
    ) -> TritonMetadata:
        """A step whose block tables are the layout's: everything in one copy to the device."""
        num_seqs = len(layout.context_lens)
        rows = np.arange(num_seqs)
        shared: Sequence[SharedPrefix] = ()
        if pad_to is None or pad_to.shares:
            shared = self.find_shared(spec, layout, rows, layout.block_tables)
        work = self.plan_work(spec, layout, rows, pad_to, shared)
        width = -(-layout.block_tables.shape[1] // ALIGN) * ALIGN
        tables = np.zeros((num_seqs, width), np.int32)
        tables[:, : layout.block_tables.shape[1]] = layout.block_tables
        seqs, positions = layout.seq_of_token, layout.positions
        sections = [positions.astype(np.int32), seqs.astype(np.int32), tables, *work.sections]
        positions_t, rows_t, tables_rw, *views = send(sections, spec.device)
        return work.bind(views, StepTensors(positions_t, rows_t, tables_rw))

    def find_shared(
        self,
        spec: AttentionSpec,
        layout: BatchLayout,
        rows: IntArray,
        tables: npt.NDArray[np.integer[Any]],
    ) -> list[SharedPrefix]:
        """Prefixes of decodes that it pays to read once, for `plan_work`; none if none do.

        Args:
            spec: the model's attention.
            layout: the step; its block tables are not read.
            rows: [s], the row of each sequence in `tables`; below 0: none.
            tables: [rows, most blocks] block ids, as the device has them in this step.
        """
        return self._planner(spec).find_shared(layout, rows, tables)

    def plan_work(
        self,
        spec: AttentionSpec,
        layout: BatchLayout,
        rows: IntArray,
        pad_to: StepShape | None = None,
        shared: Sequence[SharedPrefix] = (),
    ) -> PlannedWork:
        """Who computes what.

        Args:
            spec: the model's attention.
            layout: the step; its block tables are not read.
            rows: [s], the row of each sequence in the device's table of blocks; below 0: none, and
                nothing is computed for it.
            pad_to: sections get the shapes that any step of this size fits into, so that a graph
                may be captured over them; the step must fit.
            shared: what `find_shared` said of this step, or none; none if `pad_to` does not share.
        """
        plan = self._planner(spec).plan(layout, rows, pad_to, shared)
        scratch = None if pad_to is None else self._scratch.setdefault(spec, Scratch())
        return PlannedWork(spec, plan.tables, plan.kinds, plan.num_part_rows, scratch)

    def rotate_and_write(
        self, qkv: torch.Tensor, args: RotaryArgs, cache: torch.Tensor, meta: TritonMetadata
    ) -> torch.Tensor:
        """See `AttentionBackend.rotate_and_write`."""
        from octavo.kernels.rotary import rotate_and_write

        step, spec = meta.step, meta.spec
        return rotate_and_write(
            qkv, args.table, step.positions, step.rows, step.block_tables, cache,
            spec.num_heads, spec.num_kv_heads, args.q_norm, args.k_norm, args.eps, args.offset,
        )  # fmt: skip

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
        self.write(k_tkd, v_tkd, cache, meta)
        return self.attend(layer, q_thd, cache, meta)

    def write(
        self, k_tkd: torch.Tensor, v_tkd: torch.Tensor, cache: torch.Tensor, meta: TritonMetadata
    ) -> None:
        """See `AttentionBackend.write`."""
        from octavo.kernels.paged_attention import write_kernel

        spec, step = meta.spec, meta.step
        k_tkd, v_tkd = _packed(k_tkd), _packed(v_tkd)
        write_kernel[(len(k_tkd),)](
            k_tkd, v_tkd, cache, step.positions, step.rows, step.block_tables,
            step.block_tables.stride(0), k_tkd.stride(0), v_tkd.stride(0), cache.stride(0),
            KV_HEADS=spec.num_kv_heads, KV_HEADS_PAD=_next_power_of_2(spec.num_kv_heads),
            PAGE=spec.block_size, D=spec.head_dim, D_PAD=_padded(spec.head_dim),
        )  # fmt: skip

    def attend(
        self,
        layer: LayerAttention,
        q_thd: torch.Tensor,
        cache: torch.Tensor,
        meta: TritonMetadata,
    ) -> torch.Tensor:
        """See `AttentionBackend.attend`."""
        from octavo.kernels.paged_parts import merge_kernel
        from octavo.kernels.pdl import options

        spec, kv_heads, dim = meta.spec, meta.spec.num_kv_heads, meta.spec.head_dim
        group = spec.num_heads // kv_heads
        q_thd = _packed(q_thd)
        out_thd = torch.empty(q_thd.shape, dtype=q_thd.dtype, device=q_thd.device)
        launches = meta.launches[layer.window]
        if (spec, layer.window) not in self._compiled:
            # Kernels at once, with nothing to do, so that no later step waits for a compiler.
            self._compiled.add((spec, layer.window))
            launches = self._idle_launches(spec, layer.window) + launches
        for launch in launches:
            if launch.kind.is_prompts or launch.kind.is_decodes:
                kernel = hopper_prompts if launch.kind.is_prompts else hopper_decodes
                num_sms = self._sms(spec.device)
                kernel.attend(layer, q_thd, cache, out_thd, launch, meta, num_sms)
            else:
                _attend(layer, q_thd, cache, out_thd, launch, meta)
            # The next launch of this step writes to the same parts, after this merge has read them.
            if len(launch.merges):
                tuning = launch.kind.tuning
                blocks = -(-launch.kind.merge_tokens * group // tuning.merged_rows)
                merge_kernel[(blocks, kv_heads, len(launch.merges))](
                    out_thd, meta.parts, meta.part_weights, launch.merges, meta.parts.shape[1],
                    HEADS=spec.num_heads, GROUP=group, D=dim, D_PAD=_padded(dim),
                    ROWS=tuning.merged_rows, PARTS=tuning.merged_parts, **options(q_thd.device),
                )  # fmt: skip
        return out_thd

    def _idle_launches(self, spec: AttentionSpec, window: int | None) -> list[Launch]:
        """One of each kind that there is, but for long prompts: their kernel takes long itself."""
        nothing = torch.full((1, ITEM_FIELDS), -1, dtype=torch.int32, device=spec.device)
        tunings = self._tunings_of(spec)
        kinds = [Kind(window, tunings.short, 1), Kind(window, tunings.long, 1)]
        if (apart := tunings.kind_apart(window)) is not None:
            kinds.append(apart)
        if (prompts := tunings.prompts) is not None:
            kinds.append(Kind(window, prompts.few_keys, 1, is_prompts=True))
        return [Launch(kind, nothing, nothing, nothing[: not kind.merges_itself]) for kind in kinds]

    def _tunings_of(self, spec: AttentionSpec) -> Tunings:
        if self._tunings is not None:
            return self._tunings
        tunings = default_tunings(spec.head_dim, spec.dtype)
        return replace(
            tunings,
            prompts=hopper_prompts.tunings_for(spec),
            decodes=hopper_decodes.tuning_for(spec),
        )

    def _planner(self, spec: AttentionSpec) -> Planner:
        planner = self._planners.get(spec)
        if planner is None:
            num_sms = self._sms(spec.device)
            planner = Planner(spec, self._tunings_of(spec), num_sms, self._sharing)
            self._planners[spec] = planner
        return planner

    def _sms(self, device: torch.device) -> int:
        if self._num_sms is None:
            self._num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        return self._num_sms


def _attend(
    layer: LayerAttention,
    q_thd: torch.Tensor,
    cache: torch.Tensor,
    out_thd: torch.Tensor,
    launch: Launch,
    meta: TritonMetadata,
) -> None:
    """Fill in `out_thd`, or leave parts, for a launch's items, by the kernel for all GPUs."""
    from octavo.kernels.paged_attention import attend_kernel
    from octavo.kernels.pdl import options

    spec, tables, tuning = meta.spec, meta.step.block_tables, launch.kind.tuning
    group = spec.num_heads // spec.num_kv_heads
    attend_kernel[(spec.num_kv_heads, len(launch.items))](
        q_thd, cache, out_thd, meta.parts, meta.part_weights, meta.arrivals, launch.items,
        launch.members, tables, tables.stride(0), meta.parts.shape[1], q_thd.stride(0),
        cache.stride(0),
        layer.scale, spec.soft_cap or 1.0, layer.window or 0,
        HEADS=spec.num_heads, GROUP=group, PAGE=spec.block_size, D=spec.head_dim,
        D_PAD=_padded(spec.head_dim),
        TILE_M=tile_rows(tuning, group), TILE_N=tuning.key_tile,
        HAS_WINDOW=layer.window is not None, HAS_CAP=spec.soft_cap is not None,
        AHEAD=tuning.looks_ahead,
        MERGED=tuning.merged_parts if launch.kind.merges_itself else 0,
        num_warps=tuning.num_warps, num_stages=tuning.num_stages, **options(q_thd.device),
    )  # fmt: skip


def send(sections: list[Table], device: torch.device) -> list[torch.Tensor]:
    """All sections in one copy; what comes back are views of one tensor."""
    starts, total = offsets(sections)
    # torch's pinned memory is not handed out again before a copy from it is done.
    host = torch.empty(total, dtype=torch.int32, pin_memory=device.type == "cuda")
    fill(host, sections, starts)
    return views(host.to(device, non_blocking=True), sections, starts)


def _packed(x_tjd: torch.Tensor) -> torch.Tensor:
    """With the heads of a token side by side; a copy where they are not."""
    if x_tjd.stride(2) == 1 and x_tjd.stride(1) == x_tjd.shape[2]:
        return x_tjd
    return x_tjd.contiguous()


def _padded(dim: int) -> int:
    return max(_next_power_of_2(dim), 16)


def _next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
