"""Paged attention in Triton: one kernel for decodes, chunks and prefills.

Knows tensors and integers alone; which program does what is decided in `attention/work.py`.

Every program takes one row of `items` (see `layout.py`) and one KV head: a tile of consecutive
query tokens of one sequence, against a range of the sequence's keys. The query heads that share the
KV head are packed into the tile's rows (row r is token r // GROUP of the tile, head r % GROUP of
the group), so each key is read once for all of them. Where the keys of a tile are divided among
several programs, each leaves a normalized part and the logarithm of its weight, to be merged by
`paged_parts.py` (as in Flash-Decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
A tile may also be of tokens of several sequences that begin with the same blocks (`members`); what
each of them has alone are other tiles, and both leave parts (cascade inference by FlashInfer, and
Hydragen, arXiv 2402.05099).
Softmax is computed online, in float32 and base 2 (FlashAttention-2, arXiv 2307.08691).

Cache layout: [b, 2, k, p, d], block, keys or values, KV head, token in the block, dimension; its
type may be narrower than the queries', which products are computed in.
All address arithmetic that a large cache could overflow is in 64 bits.
Items, members and tables are a step's input, read before the wait of `pdl.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.layout import ITEM_FIELDS
from octavo.kernels.paged_parts import merged_parts
from octavo.kernels.pdl import wait_then_release

_ITEM = tl.constexpr(ITEM_FIELDS)


@triton.jit
def _values(at, pos, dims, key_end, D: tl.constexpr, D_PAD: tl.constexpr, MASKED: tl.constexpr):
    # Past the last key lies what an earlier owner left: a weight of 0 times it must be 0.
    if MASKED:
        v = tl.load(at, mask=(pos[:, None] < key_end) & (dims[None, :] < D), other=0.0)
    elif D != D_PAD:
        v = tl.load(at, mask=dims[None, :] < D, other=0.0)
    else:
        v = tl.load(at)
    return v


@triton.jit
def _attend_tile(
    q,
    acc,
    row_max,
    row_sum,
    begin,
    end,
    key_end,
    query_pos,
    table,
    keys,
    dims,
    stride_block,
    stride_value,
    scale_log2,
    scale,
    soft_cap,
    window,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    TILE_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    AHEAD: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Fold the keys [begin, end) into the accumulators; unmasked ones are seen by all rows.

    With AHEAD a tile's blocks are looked up while the tile before is folded in, so that the address
    of a load hangs on no load of the same round, and the compiler can ask for tiles in advance.
    """
    pos = begin + tl.arange(0, TILE_N)
    block = tl.load(table + pos // PAGE, mask=pos < key_end, other=0) if AHEAD else pos
    for start in range(begin, end, TILE_N):
        pos = start + tl.arange(0, TILE_N)
        if not AHEAD:
            if MASKED:
                block = tl.load(table + pos // PAGE, mask=pos < key_end, other=0)
            else:
                block = tl.load(table + pos // PAGE)
        offset = block.to(tl.int64) * stride_block + (pos % PAGE) * D
        at = keys + offset[:, None] + dims[None, :]
        k = tl.load(at, mask=dims[None, :] < D, other=0.0) if D != D_PAD else tl.load(at)
        if AHEAD:
            v = _values(at + stride_value, pos, dims, key_end, D, D_PAD, MASKED)
            pos_ahead = pos + TILE_N
            block = tl.load(table + pos_ahead // PAGE, mask=pos_ahead < key_end, other=0)
        logits = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")
        if HAS_CAP:
            # tanh(x) = 1 - 2 / (exp(2x) + 1), with the right limits when exp overflows.
            capped = tl.exp2(logits * (scale / soft_cap * 2.8853900817779268))
            logits = soft_cap * 1.4426950408889634 * (1.0 - 2.0 / (capped + 1.0))
        else:
            logits = logits * scale_log2
        if MASKED:
            visible = (pos[None, :] <= query_pos[:, None]) & (pos[None, :] < key_end)
            if HAS_WINDOW:
                visible = visible & (pos[None, :] > query_pos[:, None] - window)
            logits = tl.where(visible, logits, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(logits, 1))
        # A row that has seen no key yet: any finite value gives weights of zero.
        safe_max = tl.where(new_max == float("-inf"), 0.0, new_max) if MASKED else new_max
        weights = tl.exp2(logits - safe_max[:, None])
        shrink = tl.exp2(row_max - safe_max)
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        if not AHEAD:
            v = _values(at + stride_value, pos, dims, key_end, D, D_PAD, MASKED)
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc, input_precision="ieee")
        row_max = new_max
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=["table_stride", "window", "part_rows"])
def attend_kernel(
    q_ptr,
    cache_ptr,
    out_ptr,
    parts_ptr,
    part_weights_ptr,
    arrivals_ptr,
    items_ptr,
    members_ptr,
    tables_ptr,
    table_stride,
    part_rows,
    stride_qt,
    stride_block,
    scale,
    soft_cap,
    window,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    AHEAD: tl.constexpr,
    MERGED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (KV heads, items). Heads of `q` lie side by side, `out` is contiguous [t, h, d].

    With MERGED > 0 tiles have one token, and the program that leaves the last part of a tile merges
    them, so many at a time; which one that is changes nothing.
    """
    head = tl.program_id(0)
    item = items_ptr + tl.program_id(1) * _ITEM
    seq = tl.load(item)
    if PDL:
        wait_then_release()
    if seq < 0:
        return
    first_token = tl.load(item + 1).to(tl.int64)
    num_tokens = tl.load(item + 2)
    first_pos = tl.load(item + 3)
    key_begin = tl.load(item + 4)
    key_end = tl.load(item + 5)
    part_row = tl.load(item + 6)
    has_members = tl.load(item + 7) > 0

    GROUP_PAD: tl.constexpr = triton.next_power_of_2(GROUP)
    rows = tl.arange(0, TILE_M)
    dims = tl.arange(0, D_PAD)
    token = rows // GROUP
    real_row = token < num_tokens
    real = real_row[:, None] & (dims[None, :] < D)
    query_pos = first_pos + token
    query_head = head * GROUP + rows % GROUP
    # Members leave parts, so that only their queries are looked for.
    member = tl.load(members_ptr + first_token + token, mask=real_row & has_members, other=0)
    q_token = tl.where(has_members, member.to(tl.int64), first_token + token)
    q_at = q_ptr + (q_token * stride_qt + query_head * D)[:, None] + dims[None, :]
    q = tl.load(q_at, mask=real, other=0.0)

    table = tables_ptr + seq.to(tl.int64) * table_stride
    HEAD_SIZE: tl.constexpr = PAGE * D
    keys = cache_ptr + head * HEAD_SIZE
    stride_value = stride_block // 2
    scale_log2 = scale * 1.4426950408889634

    acc = tl.zeros([TILE_M, D_PAD], tl.float32)
    row_max = tl.full([TILE_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([TILE_M], tl.float32)

    # Tiles [clear_begin, clear_end) are seen by every row; what lies around them is masked.
    clear_begin = key_begin
    if HAS_WINDOW:
        last_pos = first_pos + num_tokens - 1
        edge = tl.maximum(last_pos - window + 1 - key_begin, 0)
        clear_begin = key_begin + tl.cdiv(edge, TILE_N) * TILE_N
        clear_begin = tl.minimum(clear_begin, key_end)
        acc, row_max, row_sum = _attend_tile(
            q, acc, row_max, row_sum, key_begin, clear_begin, key_end, query_pos, table, keys,
            dims, stride_block, stride_value, scale_log2, scale, soft_cap, window,
            PAGE, D, D_PAD, TILE_N, HAS_WINDOW, HAS_CAP, AHEAD, True,
        )  # fmt: skip
    clear = tl.maximum(tl.minimum(first_pos + 1, key_end) - clear_begin, 0) // TILE_N
    clear_end = clear_begin + clear * TILE_N
    acc, row_max, row_sum = _attend_tile(
        q, acc, row_max, row_sum, clear_begin, clear_end, key_end, query_pos, table, keys,
        dims, stride_block, stride_value, scale_log2, scale, soft_cap, window,
        PAGE, D, D_PAD, TILE_N, HAS_WINDOW, HAS_CAP, AHEAD, False,
    )  # fmt: skip
    acc, row_max, row_sum = _attend_tile(
        q, acc, row_max, row_sum, clear_end, key_end, key_end, query_pos, table, keys,
        dims, stride_block, stride_value, scale_log2, scale, soft_cap, window,
        PAGE, D, D_PAD, TILE_N, HAS_WINDOW, HAS_CAP, AHEAD, True,
    )  # fmt: skip

    result = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    if part_row < 0:
        out_at = (first_token + token) * (HEADS * D) + query_head * D
        tl.store(
            out_ptr + out_at[:, None] + dims[None, :],
            result.to(out_ptr.dtype.element_ty),
            mask=real,
        )
    else:
        # Only real rows have a place: row r of the tile is row part_row + r of this head's parts.
        row = head.to(tl.int64) * part_rows + part_row + rows
        tl.store(parts_ptr + (row * D)[:, None] + dims[None, :], result, mask=real)
        weight = row_max + tl.log2(tl.where(row_sum == 0.0, 1.0, row_sum))
        tl.store(part_weights_ptr + row, weight, mask=real_row)
        if MERGED > 0:
            first_row = head.to(tl.int64) * part_rows + tl.load(item + 8)
            count = tl.load(item + 9)
            tl.debug_barrier()  # the whole program's stores come before its arrival
            if tl.atomic_add(arrivals_ptr + first_row, 1, sem="acq_rel") == count - 1:
                one = tl.arange(0, GROUP_PAD)
                merged = merged_parts(
                    parts_ptr, part_weights_ptr, first_row + one, 0, count, GROUP, 0, 0, count,
                    one < GROUP, D, D_PAD, GROUP_PAD, MERGED, ".cg",
                )  # fmt: skip
                out_at = first_token * (HEADS * D) + (head * GROUP + one) * D
                tl.store(
                    out_ptr + out_at[:, None] + dims[None, :],
                    merged.to(out_ptr.dtype.element_ty),
                    mask=(one < GROUP)[:, None] & (dims[None, :] < D),
                )
                tl.store(arrivals_ptr + first_row, 0)  # for the next launch


@triton.jit(do_not_specialize=["table_stride"])
def write_kernel(
    k_ptr,
    v_ptr,
    cache_ptr,
    positions_ptr,
    rows_ptr,
    tables_ptr,
    table_stride,
    stride_kt,
    stride_vt,
    stride_block,
    KV_HEADS: tl.constexpr,
    KV_HEADS_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Grid (tokens,): keys and values to where the token's row has its position; no row below 0."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + token)
    if row < 0:
        return
    position = tl.load(positions_ptr + token)
    block = tl.load(tables_ptr + row.to(tl.int64) * table_stride + position // PAGE)
    heads = tl.arange(0, KV_HEADS_PAD)[:, None]
    dims = tl.arange(0, D_PAD)[None, :]
    real = (heads < KV_HEADS) & (dims < D)
    to = block.to(tl.int64) * stride_block + (position % PAGE) * D
    to = cache_ptr + to + heads * (PAGE * D) + dims
    k = tl.load(k_ptr + token * stride_kt + heads * D + dims, mask=real)
    v = tl.load(v_ptr + token * stride_vt + heads * D + dims, mask=real)
    tl.store(to, k.to(cache_ptr.dtype.element_ty), mask=real)
    tl.store(to + stride_block // 2, v.to(cache_ptr.dtype.element_ty), mask=real)
