"""Attention of decodes by the kernel for Hopper: when it can be used, and its launches.

Knows devices and tensors; who computes what was planned elsewhere, as for the kernels for all GPUs,
and the results are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.attention import hopper
from octavo.attention.tunings import Tuning, padded_group
from octavo.kernels.layout import DECODE_PANEL, DECODE_SLAB

if TYPE_CHECKING:
    import torch

    from octavo.attention.interface import AttentionSpec, LayerAttention
    from octavo.attention.triton_work import Launch, TritonMetadata

PROGRAMS_PER_SM = 4
"""That run at a time: what a multiprocessor's shared memory has room for."""
_MERGED_VALUES = 4096
"""Of parts that are merged, most that a program holds at a time."""

# Measured with heads of 128: docs/decisions/0025-attention-of-decodes-on-hopper.md.
TUNING = Tuning(16, 32, 1, 3, 2, 128, merged_parts=8, max_chunk=512, most_per_sm=4)


def tuning_for(spec: AttentionSpec) -> Tuning | None:
    """Shape of tiles, or None if the kernel cannot serve `spec` on its device."""
    return None if why_not(spec) else TUNING


def why_not(spec: AttentionSpec) -> str | None:
    """Why the kernel cannot serve `spec`, or None when it can."""
    return hopper.why_not(spec, min_block=DECODE_SLAB, max_group=16)


def attend(
    layer: LayerAttention,
    q_thd: torch.Tensor,
    cache: torch.Tensor,
    out_thd: torch.Tensor,
    launch: Launch,
    meta: TritonMetadata,
    num_sms: int,
) -> None:
    """Fill in `out_thd` for the items of a launch, each of one token.

    Args:
        layer: of the model.
        q_thd: [t, h, d]; tokens may be apart, heads may not.
        cache: [b, 2, k, p, d].
        out_thd: contiguous.
        launch: merges itself.
        meta: of the step.
        num_sms: multiprocessors of the device.
    """
    from octavo.kernels.decode_attention import attend_decodes_kernel
    from octavo.kernels.pdl import options

    spec, tables, tuning = meta.spec, meta.step.block_tables, launch.kind.tuning
    dim, kv_heads = spec.head_dim, spec.num_kv_heads
    group = spec.num_heads // kv_heads
    wide = padded_group(group)
    num_rows = cache.numel() // dim
    panels = dim // DECODE_PANEL
    keys = hopper.descriptor(
        cache,
        [2, panels, DECODE_SLAB, DECODE_PANEL],
        [2, panels, num_rows, DECODE_PANEL],
        [cache.stride(1), DECODE_PANEL, dim, 1],
    )
    attend_decodes_kernel[(min(PROGRAMS_PER_SM * num_sms, len(launch.items) * kv_heads),)](
        q_thd, keys, out_thd, meta.parts, meta.part_weights, meta.arrivals, meta.tickets,
        launch.items, tables, tables.stride(0), meta.parts.shape[1], num_rows, q_thd.stride(0),
        *hopper.softmax_args(layer, spec.soft_cap),
        KV=kv_heads, GROUP=group, GROUP_PAD=wide, PAGE=spec.block_size, D=dim, N=tuning.key_tile,
        STAGES=tuning.num_stages * 128 // dim,  # of heads of 64, twice as many have room
        PARTS=min(tuning.merged_parts, _MERGED_VALUES // (wide * dim)),
        HAS_CAP=spec.soft_cap is not None, num_warps=tuning.num_warps, **options(q_thd.device),
    )  # fmt: skip
