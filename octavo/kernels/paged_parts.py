"""Parts of attention, added up: results for shares of a token's keys, each with its weight.

`paged_attention.py` leaves them, normalized, with the logarithm (base 2) of their sums. Merges are
a step's input, read before the wait of `pdl.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.layout import MERGE_FIELDS
from octavo.kernels.pdl import wait_then_release

_MERGE = tl.constexpr(MERGE_FIELDS)


@triton.jit
def merged_parts(
    parts_ptr,
    part_weights_ptr,
    base,
    row,
    count,
    step,
    other_row,
    other_step,
    both,
    real,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    CACHE: tl.constexpr,
):
    """Weighted sum of two runs of parts, PARTS at a time, in their order: [ROWS, D_PAD]."""
    dims = tl.arange(0, D_PAD)
    acc = tl.zeros([ROWS, D_PAD], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, both, PARTS):
        part = first + tl.arange(0, PARTS)
        run = tl.where(part < count, row + part * step, other_row + (part - count) * other_step)
        at = base[None, :] + run[:, None]
        there = (part < both)[:, None] & real[None, :]
        # Other multiprocessors may have written them a moment ago: not from L1.
        weight = tl.load(
            part_weights_ptr + at, mask=there, other=float("-inf"), cache_modifier=CACHE
        )
        new_top = tl.maximum(top, tl.max(weight, 0))
        safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        share = tl.exp2(weight - safe_top[None, :])
        values = tl.load(
            parts_ptr + (at * D)[:, :, None] + dims[None, None, :],
            mask=there[:, :, None] & (dims < D)[None, None, :],
            other=0.0,
            cache_modifier=CACHE,
        )
        shrink = tl.exp2(top - safe_top)
        acc = acc * shrink[:, None] + tl.sum(values * share[:, :, None], 0)
        total = total * shrink + tl.sum(share, 0)
        top = new_top
    return acc / tl.where(real, total, 1.0)[:, None]


@triton.jit(do_not_specialize=["part_rows"])
def merge_kernel(
    out_ptr,
    parts_ptr,
    part_weights_ptr,
    merges_ptr,
    part_rows,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows of a tile / ROWS, KV heads, merges): weighted sums, PARTS parts at a time."""
    merge = merges_ptr + tl.program_id(2) * _MERGE
    first_token = tl.load(merge)
    if PDL:
        wait_then_release()
    if first_token < 0:
        return
    num_rows = tl.load(merge + 1) * GROUP
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS >= num_rows:
        return
    head = tl.program_id(1)
    base = head.to(tl.int64) * part_rows + rows
    row = tl.load(merge + 2)
    count = tl.load(merge + 3)
    step = tl.load(merge + 4)
    other_row = tl.load(merge + 5)
    both = count + tl.load(merge + 6)
    other_step = tl.load(merge + 7)
    real = rows < num_rows
    result = merged_parts(
        parts_ptr, part_weights_ptr, base, row, count, step, other_row, other_step, both, real,
        D, D_PAD, ROWS, PARTS, "",
    )  # fmt: skip
    dims = tl.arange(0, D_PAD)
    token = first_token.to(tl.int64) + rows // GROUP
    query_head = head * GROUP + rows % GROUP
    out_at = (token * (HEADS * D) + query_head * D)[:, None] + dims[None, :]
    tl.store(
        out_ptr + out_at,
        result.to(out_ptr.dtype.element_ty),
        mask=real[:, None] & (dims[None, :] < D),
    )
