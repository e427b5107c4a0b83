"""Attention of prompts by the kernel for Hopper: when it can be used, and its launches.

Knows devices, versions and tensors; who computes what was planned elsewhere, as for the kernels for
all GPUs, and the results are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.attention import hopper
from octavo.attention.tunings import PromptTunings, Tuning, padded_group
from octavo.kernels.layout import PROMPT_HALF, PROMPT_PANEL, PROMPT_ROWS, PROMPT_SLAB

if TYPE_CHECKING:
    import torch

    from octavo.attention.interface import AttentionSpec, LayerAttention
    from octavo.attention.triton_work import Launch, TritonMetadata

# Measured with heads of 128: docs/decisions/0024-attention-of-prompts-on-hopper.md.
TUNINGS = PromptTunings(
    few_keys=Tuning(PROMPT_ROWS, 64, 4, 4, 1, 256, 8, 4),
    many_keys=Tuning(PROMPT_ROWS, 128, 4, 2, 1, 256, 8, 4),
    min_mean_keys=640,
)


def tunings_for(spec: AttentionSpec) -> PromptTunings | None:
    """Shapes of tiles, or None if the kernel cannot serve `spec` on its device."""
    return None if why_not(spec) else TUNINGS


def why_not(spec: AttentionSpec) -> str | None:
    """Why the kernel cannot serve `spec`, or None when it can."""
    return hopper.why_not(spec, min_block=8, max_group=PROMPT_HALF)


def attend(
    layer: LayerAttention,
    q_thd: torch.Tensor,
    cache: torch.Tensor,
    out_thd: torch.Tensor,
    launch: Launch,
    meta: TritonMetadata,
    num_sms: int,
) -> None:
    """Fill in `out_thd`, or leave parts, for the items of a launch.

    Args:
        layer: of the model.
        q_thd: [t, h, d]; tokens may be apart, heads may not.
        cache: [b, 2, k, p, d].
        out_thd: contiguous.
        launch: of whole items; none is of tokens that lie apart.
        meta: of the step.
        num_sms: multiprocessors of the device.
    """
    from octavo.kernels.prompt_attention import attend_prompts_kernel

    spec, tables, tuning = meta.spec, meta.step.block_tables, launch.kind.tuning
    dim, kv_heads = spec.head_dim, spec.num_kv_heads
    group = spec.num_heads // kv_heads
    wide = padded_group(group)
    rows = cache.view(-1, dim)
    slab = min(spec.block_size, PROMPT_SLAB)
    num_work = len(launch.items) * kv_heads
    attend_prompts_kernel[(min(num_sms, num_work),)](
        hopper.descriptor(q_thd, [PROMPT_HALF // wide, wide, PROMPT_PANEL]),
        hopper.descriptor(rows, [slab, PROMPT_PANEL]),
        out_thd, meta.parts, meta.part_weights, launch.items, tables, tables.stride(0),
        meta.parts.shape[1], num_work, len(rows),
        *hopper.softmax_args(layer, spec.soft_cap), layer.window or 0,
        KV=kv_heads, GROUP=group, GROUP_PAD=wide, PAGE=spec.block_size, D=dim,
        N=tuning.key_tile, STAGES=tuning.num_stages,
        HAS_WINDOW=layer.window is not None, HAS_CAP=spec.soft_cap is not None,
        num_warps=tuning.num_warps,
    )  # fmt: skip
