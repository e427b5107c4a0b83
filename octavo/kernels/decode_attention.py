"""Paged attention of decodes on Hopper: what `paged_attention.py` computes, for one token a tile.

Knows tensors and integers alone. Reading keys and values is all that takes time here, so what
counts is that the card is always being asked for some. Programs are of one warp each, stay for all
of a launch's items, and have the copy engine bring tiles that they will need (`decode_fetch.py`):
what a program does between two items, or waits for, is hidden by what is on its way to it and by
the other programs of the multiprocessor. No program waits for another. Written in Gluon, Triton's
language below Triton.

Products are turned around: keys are the rows, 16 to a tensor instruction, and the query heads of a
KV head its 8 columns, since heads as rows would be padded from 4 to 16.

Items and parts are those of `paged_attention.py`; the program that leaves a tile's last part merges
them. A tile's place in shared memory holds slabs of 16 tokens, keys and then values.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from octavo.kernels.decode_fetch import SLAB, ask, first_of, shifted
from octavo.kernels.gluon_sync import barrier, wait_then_release
from octavo.kernels.layout import DECODE_PANEL, ITEM_FIELDS

_ITEM = gl.constexpr(ITEM_FIELDS)
_PANEL = gl.constexpr(DECODE_PANEL)


@gluon.jit
def _merge(
    out_ptr,
    parts_ptr,
    part_weights_ptr,
    first_row,
    count,
    first_head,
    GROUP: gl.constexpr,
    GROUP_PAD: gl.constexpr,
    D: gl.constexpr,
    PARTS: gl.constexpr,
):
    """Weighted sum of a tile's parts, PARTS at a time, in their order, to the heads of a token."""
    lanes: gl.constexpr = D // 4
    layout: gl.constexpr = gl.BlockedLayout(
        [PARTS, 1, 4], [1, 32 // lanes, lanes], [1, 1, 1], [2, 1, 0]
    )
    sums: gl.constexpr = gl.SliceLayout(0, layout)
    weighed: gl.constexpr = gl.SliceLayout(2, layout)
    rows: gl.constexpr = gl.SliceLayout(0, weighed)
    member = gl.arange(0, GROUP_PAD, layout=rows)
    dims = gl.arange(0, D, layout=gl.SliceLayout(0, sums))
    acc = gl.zeros([GROUP_PAD, D], gl.float32, sums)
    top = gl.full([GROUP_PAD], float("-inf"), gl.float32, rows)
    total = gl.zeros([GROUP_PAD], gl.float32, rows)
    for begin in range(0, count, PARTS):
        part = begin + gl.arange(0, PARTS, layout=gl.SliceLayout(1, weighed))
        there = (part < count)[:, None] & (member < GROUP)[None, :]
        at = first_row + part[:, None] * GROUP + member[None, :]
        # Other multiprocessors may have written them a moment ago: not from L1.
        weight = gl.load(
            part_weights_ptr + at, mask=there, other=float("-inf"), cache_modifier=".cg"
        )
        values = gl.load(
            parts_ptr + gl.expand_dims(at * D, 2) + gl.expand_dims(dims[None, :], 0),
            mask=gl.expand_dims(there, 2),
            other=0.0,
            cache_modifier=".cg",
        )
        new_top = gl.maximum(top, gl.max(weight, 0))
        safe_top = gl.where(new_top == float("-inf"), 0.0, new_top)
        share = gl.exp2(weight - safe_top[None, :])
        shrink = gl.exp2(top - safe_top)
        acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, sums))[:, None]
        acc = acc + gl.sum(values * gl.expand_dims(share, 2), 0)
        total = total * shrink + gl.sum(share, 0)
        top = new_top
    head = gl.arange(0, GROUP_PAD, layout=gl.SliceLayout(1, sums))
    total = gl.where(member < GROUP, total, 1.0)
    result = acc / gl.convert_layout(total, gl.SliceLayout(1, sums))[:, None]
    gl.store(
        out_ptr + ((first_head + head) * D)[:, None] + dims[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=(head < GROUP)[:, None] & (dims < D)[None, :],
    )


@gluon.jit(do_not_specialize=["table_stride", "part_rows", "num_rows", "stride_qt"])
def attend_decodes_kernel(
    q_ptr,
    keys,
    out_ptr,
    parts_ptr,
    part_weights_ptr,
    arrivals_ptr,
    tickets_ptr,
    items_ptr,
    tables_ptr,
    table_stride,
    part_rows,
    num_rows,
    stride_qt,
    scale_log2,
    cap_scale,
    cap,
    KV: gl.constexpr,
    GROUP: gl.constexpr,
    GROUP_PAD: gl.constexpr,
    PAGE: gl.constexpr,
    D: gl.constexpr,
    N: gl.constexpr,
    STAGES: gl.constexpr,
    PARTS: gl.constexpr,
    HAS_CAP: gl.constexpr,
    PDL: gl.constexpr,
):
    """Grid: as many programs as the device runs at a time; the first item says how many there are.

    `keys` is a descriptor of the cache as [keys or values, panel, row, 64], in boxes of a slab; a
    row is one token's of one head, and there are `num_rows`. Heads of `q` lie side by side, `out`
    is contiguous [t, h, d]. `scale_log2` turns logits into logarithms of weights: it follows the
    cap where there is one, and `cap_scale` comes before it.
    """
    dtype: gl.constexpr = out_ptr.dtype.element_ty
    SLABS: gl.constexpr = N // SLAB
    COLS: gl.constexpr = GROUP_PAD if GROUP_PAD > 8 else 8
    box: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=4)
    shared: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [1, 1], [16, 8])
    left: gl.constexpr = gl.DotOperandLayout(0, mma, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, 2)
    columns: gl.constexpr = gl.SliceLayout(0, mma)
    q_flat: gl.constexpr = gl.BlockedLayout([8, 1], [D // 8, 256 // D], [1, 1], [0, 1])
    flat: gl.constexpr = gl.BlockedLayout([4, 1], [D // 4, 128 // D], [1, 1], [0, 1])

    program = gl.program_id(0)
    num_work = gl.load(items_ptr + 10) * KV
    lists = (items_ptr, tables_ptr, table_stride, num_rows)
    cursor = first_of(program, num_work, lists, KV, PAGE, SLABS)
    slabs = gl.allocate_shared_memory(dtype, [STAGES * SLABS, 2, D // _PANEL, SLAB, _PANEL], box)
    # What the engine leaves of a slab is how products want its keys, and its values.
    halves = slabs._reinterpret(dtype, [STAGES * SLABS * 2, SLAB, D], shared)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
    fence_async_shared()
    barrier()

    if PDL:
        wait_then_release()
    works = (cursor[0],)  # whose the next tiles are that are computed
    for ahead in gl.static_range(STAGES):
        cursor = ask(
            cursor, ahead, keys, lists, tickets_ptr, num_work, slabs, full,
            KV, PAGE, D, SLABS, STAGES,
        )  # fmt: skip
        if ahead < STAGES - 1:
            works = works + (cursor[0],)  # type: ignore[assignment]  # noqa: RUF005

    q_dims = gl.arange(0, D, layout=gl.SliceLayout(1, q_flat))[:, None]
    q_heads = gl.arange(0, COLS, layout=gl.SliceLayout(0, q_flat))[None, :]
    q_at = q_ptr + q_heads * D + q_dims
    q_mask = (q_heads < GROUP) & (q_dims < D)
    key = gl.arange(0, SLAB, layout=gl.SliceLayout(1, mma))[:, None]
    value = gl.arange(0, SLAB, layout=gl.SliceLayout(0, left))[None, :]
    dims = gl.arange(0, D, layout=gl.SliceLayout(1, flat))[:, None]
    heads = gl.arange(0, COLS, layout=gl.SliceLayout(0, flat))[None, :]
    is_real = (heads < GROUP) & (dims < D)
    tile = 0
    while works[0] >= 0:
        item = items_ptr + works[0] // KV * _ITEM
        head = works[0] % KV
        token = gl.load(item + 1).to(gl.int64)
        begin = gl.load(item + 4)
        end = gl.load(item + 5)
        part_row = gl.load(item + 6)
        q = gl.load(q_at + head * (GROUP * D) + token * stride_qt, mask=q_mask, other=0.0)
        q = gl.convert_layout(q, right)
        acc = gl.zeros([D, COLS], gl.float32, mma)
        row_max = gl.full([COLS], float("-inf"), gl.float32, columns)
        sums = gl.zeros([SLAB, COLS], gl.float32, mma)
        for start in range(begin // SLAB * SLAB, end, N):
            place = tile % STAGES
            mbarrier.wait(full.index(place), tile // STAGES & 1)
            logits = ()
            values = ()
            for slab in gl.static_range(SLABS):
                half = (place * SLABS + slab) * 2
                k = halves.index(half).load(left)
                some = mma_v2(k, q, gl.zeros([SLAB, COLS], gl.float32, mma))
                v = halves.index(half + 1).permute((1, 0)).load(left)
                if HAS_CAP:
                    # tanh(x) = 1 - 2 / (exp(2x) + 1), with the right limits when exp overflows.
                    some = cap * (1.0 - 2.0 / (gl.exp2(some * cap_scale) + 1.0))
                pos = start + slab * SLAB
                if (pos < begin) | (pos + SLAB > end):
                    is_key = (pos + key >= begin) & (pos + key < end)
                    some = gl.where(is_key, some, float("-inf"))
                    # Past the last key lies what an earlier owner left, and 0 times it must be 0.
                    v = gl.where(pos + value < end, v, gl.zeros_like(v))
                logits = logits + (some,)  # type: ignore[assignment]  # noqa: RUF005
                values = values + (v,)  # type: ignore[assignment]  # noqa: RUF005
            barrier()  # all have read the place before it is written to
            works = shifted(works, cursor[0], STAGES)
            cursor = ask(
                cursor, tile, keys, lists, tickets_ptr, num_work, slabs, full,
                KV, PAGE, D, SLABS, STAGES,
            )  # fmt: skip
            largest = gl.full([SLAB, COLS], float("-inf"), gl.float32, mma)
            for slab in gl.static_range(SLABS):
                largest = gl.maximum(largest, logits[slab])
            new_max = gl.maximum(row_max, gl.max(largest, 0))
            # No key seen yet, of which there are none: any finite value gives weights of zero.
            top = gl.where(new_max == float("-inf"), 0.0, new_max * scale_log2)
            shrink = gl.exp2(row_max * scale_log2 - top)[None, :]
            sums = sums * shrink
            acc = acc * shrink
            for slab in gl.static_range(SLABS):
                weights = gl.exp2(logits[slab] * scale_log2 - top[None, :])
                sums += weights
                acc = mma_v2(values[slab], gl.convert_layout(weights.to(dtype), right), acc)
            row_max = new_max
            tile += 1

        total = gl.sum(sums, 0)
        total = gl.where(total == 0.0, 1.0, total)
        result = gl.convert_layout(acc / total[None, :], flat)
        first_head = token * (KV * GROUP) + head * GROUP
        if part_row < 0:
            gl.store(out_ptr + (first_head + heads) * D + dims, result.to(dtype), mask=is_real)
        else:
            row = head.to(gl.int64) * part_rows + part_row
            gl.store(parts_ptr + (row + heads) * D + dims, result, mask=is_real)
            column = gl.arange(0, COLS, layout=columns)
            weight = gl.where(row_max == float("-inf"), row_max, row_max * scale_log2)
            gl.store(part_weights_ptr + row + column, weight + gl.log2(total), mask=column < GROUP)
            first_row = head.to(gl.int64) * part_rows + gl.load(item + 8)
            count = gl.load(item + 9)
            barrier()  # the whole program's stores come before its arrival
            if gl.atomic_add(arrivals_ptr + first_row, 1, sem="acq_rel") == count - 1:
                _merge(
                    out_ptr, parts_ptr, part_weights_ptr, first_row, count, first_head,
                    GROUP, GROUP_PAD, D, PARTS,
                )  # fmt: skip
                gl.store(arrivals_ptr + first_row, 0)  # for the next launch
