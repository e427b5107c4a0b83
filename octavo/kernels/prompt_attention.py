"""Paged attention of prompts on Hopper: what `paged_attention.py` computes, for tiles of 128 rows.

Knows tensors and integers alone. Written in Gluon, Triton's language below Triton, because what
makes it fast is who does what when (FlashAttention-3, arXiv 2407.08608): in each program one warp
has the copy engine fetch queries, keys and values, tile after tile (`prompt_fetch.py`), and two
groups of four warps multiply, 64 rows each. Programs stay for all of a launch's items, so that the
next one's queries and keys are on their way while the last results are stored.

Items, parts and the cache's layout are those of `paged_attention.py`. A tile has N keys of D
dimensions; the query heads of a KV head are padded to a power of two.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from octavo.kernels.prompt_fetch import CONSUMERS, HALF, MOST_SLAB, PANEL, fetch, item_of

_PRODUCER_REGISTERS = gl.constexpr(40)
_CONSUMER_REGISTERS = gl.constexpr(232)


@gluon.jit
def _weigh(
    logits,
    row_max,
    row_sum,
    start,
    begin,
    end,
    first_pos,
    last_pos,
    query_pos,
    scale_log2,
    cap_scale,
    cap,
    window,
    N: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_CAP: gl.constexpr,
    layout: gl.constexpr,
):
    """Weights of a tile's keys, online (FlashAttention-2, arXiv 2307.08691), base 2.

    Returns weights, maxima, sums, and what earlier sums are multiplied with.
    """
    if HAS_CAP:
        # tanh(x) = 1 - 2 / (exp(2x) + 1), with the right limits when exp overflows.
        logits = cap * (1.0 - 2.0 / (gl.exp2(logits * cap_scale) + 1.0))
    is_masked = (start + N - 1 > first_pos) | (start + N > end) | (start < begin)
    if HAS_WINDOW:
        is_masked = is_masked | (start <= last_pos - window)
    if is_masked:
        pos = (start + gl.arange(0, N, layout=gl.SliceLayout(0, layout)))[None, :]
        visible = (pos <= query_pos[:, None]) & (pos < end) & (pos >= begin)
        if HAS_WINDOW:
            visible = visible & (pos > query_pos[:, None] - window)
        logits = gl.where(visible, logits, float("-inf"))
    new_max = gl.maximum(row_max, gl.max(logits, 1))
    # A row that has seen no key yet: any finite value gives weights of zero.
    top = gl.where(new_max == float("-inf"), 0.0, new_max * scale_log2)
    weights = gl.exp2(logits * scale_log2 - top[:, None])
    shrink = gl.exp2(row_max * scale_log2 - top)
    return weights, new_max, row_sum * shrink + gl.sum(weights, 1), shrink


@gluon.jit
def _consume(
    results,
    softmax,
    places,
    WHICH: gl.constexpr,
    KV: gl.constexpr,
    GROUP: gl.constexpr,
    GROUP_PAD: gl.constexpr,
    D: gl.constexpr,
    N: gl.constexpr,
    SLAB: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_CAP: gl.constexpr,
):
    """Four warps: half of the rows of every item."""
    out_ptr, parts_ptr, part_weights_ptr, items_ptr, num_work, part_rows = results
    scale_log2, cap_scale, cap, window = softmax
    q_all, k_all, v_all, q_full, q_empty, k_full, k_empty, v_full, v_empty = places
    dtype: gl.constexpr = out_ptr.dtype.element_ty
    shared: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    # The copy engine leaves panels of slabs, which is how products want whole tiles.
    q_tiles = q_all._reinterpret(dtype, [2 * CONSUMERS, HALF, D], shared)
    k_tiles = k_all._reinterpret(dtype, [STAGES, N, D], shared)
    v_tiles = v_all._reinterpret(dtype, [STAGES, N, D], shared)
    nothing = gl.zeros([HALF, N], gl.float32, s_layout)
    num_tiles = 0
    num_items = 0
    for turn in range(gl.cdiv(num_work, gl.num_programs(0))):
        item, head, seq = item_of(turn, num_work, items_ptr, KV)
        exists = seq >= 0
        first = gl.load(item + 1, mask=exists, other=0).to(gl.int64)
        num_tokens = gl.load(item + 2, mask=exists, other=0)
        first_pos = gl.load(item + 3, mask=exists, other=0)
        begin = gl.load(item + 4, mask=exists, other=0)
        end = gl.load(item + 5, mask=exists, other=0)
        part_row = gl.load(item + 6, mask=exists, other=0)
        if end > begin:
            rows = WHICH * HALF + gl.arange(0, HALF, layout=s_rows)
            query_pos = first_pos + rows // GROUP_PAD
            last_pos = first_pos + num_tokens - 1
            row_max = gl.full([HALF], float("-inf"), gl.float32, s_rows)
            row_sum = gl.full([HALF], 0.0, gl.float32, s_rows)
            acc = gl.zeros([HALF, D], gl.float32, o_layout)
            q_place = num_items % 2
            q = q_tiles.index(q_place * CONSUMERS + WHICH)
            start = begin // SLAB * SLAB
            place = num_tiles % STAGES
            phase = num_tiles // STAGES & 1

            mbarrier.wait(q_full.index(q_place), num_items // 2 & 1)
            mbarrier.wait(k_full.index(place), phase)
            k = k_tiles.index(place).permute((1, 0))
            logits = warpgroup_mma(q, k, nothing, use_acc=False)
            mbarrier.arrive(k_empty.index(place), count=1)
            weights, row_max, row_sum, shrink = _weigh(
                logits, row_max, row_sum, start, begin, end, first_pos, last_pos, query_pos,
                scale_log2, cap_scale, cap, window, N, HAS_WINDOW, HAS_CAP, s_layout,
            )  # fmt: skip
            p = gl.convert_layout(weights.to(dtype), p_layout)
            # Logits of a tile are computed beside the results of the one before.
            for ahead in range(start + N, end, N):
                num_tiles += 1
                k_place = num_tiles % STAGES
                mbarrier.wait(k_full.index(k_place), num_tiles // STAGES & 1)
                k = k_tiles.index(k_place).permute((1, 0))
                to_logits = warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)
                mbarrier.wait(v_full.index(place), phase)
                to_acc = warpgroup_mma(p, v_tiles.index(place), acc, is_async=True)
                logits = warpgroup_mma_wait(1, deps=[to_logits])
                mbarrier.arrive(k_empty.index(k_place), count=1)
                weights, row_max, row_sum, shrink = _weigh(
                    logits, row_max, row_sum, ahead, begin, end, first_pos, last_pos, query_pos,
                    scale_log2, cap_scale, cap, window, N, HAS_WINDOW, HAS_CAP, s_layout,
                )  # fmt: skip
                p_ahead = gl.convert_layout(weights.to(dtype), p_layout)
                # The products read `p` until they are done: nothing else may take its registers.
                acc, p, p_ahead = warpgroup_mma_wait(0, deps=[to_acc, p, p_ahead])
                mbarrier.arrive(v_empty.index(place), count=1)
                acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
                p = p_ahead
                place = k_place
                phase = num_tiles // STAGES & 1
            mbarrier.wait(v_full.index(place), phase)
            acc = warpgroup_mma(p, v_tiles.index(place), acc)
            mbarrier.arrive(v_empty.index(place), count=1)
            num_tiles += 1
            num_items += 1

            total = gl.where(row_sum == 0.0, 1.0, row_sum)
            result = acc * gl.convert_layout(1.0 / total, o_rows)[:, None]
            if part_row < 0:
                # By way of the queries' place, so that rows are written in one piece.
                q.store(result.to(dtype))
                row = WHICH * HALF + gl.arange(0, HALF, layout=gl.SliceLayout(1, flat))
                token, member = row // GROUP_PAD, row % GROUP_PAD
                dims = gl.arange(0, D, layout=gl.SliceLayout(0, flat))
                query_head = (first + token) * (KV * GROUP) + head * GROUP + member
                gl.store(
                    out_ptr + (query_head * D)[:, None] + dims[None, :],
                    q.load(flat),
                    mask=((token < num_tokens) & (member < GROUP))[:, None],
                )
            else:
                # Row r of a part is row r % GROUP of its token r // GROUP.
                first_row = head.to(gl.int64) * part_rows + part_row
                part = WHICH * HALF + gl.arange(0, HALF, layout=o_rows)
                is_real = (part // GROUP_PAD < num_tokens) & (part % GROUP_PAD < GROUP)
                part = first_row + part // GROUP_PAD * GROUP + part % GROUP_PAD
                all_dims = gl.arange(0, D, layout=gl.SliceLayout(0, o_layout))
                parts_at = parts_ptr + (part * D)[:, None] + all_dims[None, :]
                gl.store(parts_at, result, mask=is_real[:, None])
                has_weight = (rows // GROUP_PAD < num_tokens) & (rows % GROUP_PAD < GROUP)
                gl.store(
                    part_weights_ptr + first_row + rows // GROUP_PAD * GROUP + rows % GROUP_PAD,
                    row_max * scale_log2 + gl.log2(total),
                    mask=has_weight,
                )
            fence_async_shared()
            mbarrier.arrive(q_empty.index(q_place), count=1)


@gluon.jit(do_not_specialize=["table_stride", "part_rows", "num_work", "num_rows", "window"])
def attend_prompts_kernel(
    queries,
    keys,
    out_ptr,
    parts_ptr,
    part_weights_ptr,
    items_ptr,
    tables_ptr,
    table_stride,
    part_rows,
    num_work,
    num_rows,
    scale_log2,
    cap_scale,
    cap,
    window,
    KV: gl.constexpr,
    GROUP: gl.constexpr,
    GROUP_PAD: gl.constexpr,
    PAGE: gl.constexpr,
    D: gl.constexpr,
    N: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_CAP: gl.constexpr,
):
    """Grid: as many programs as the device runs at a time, or fewer; `num_work` items times heads.

    `queries` is a descriptor of [t, h, d], in boxes of [64 / GROUP_PAD, GROUP_PAD, 64]; `keys` one
    of the cache as `num_rows` rows of d, in boxes of [slab, 64]; `out` is contiguous [t, h, d].
    `scale_log2` turns logits into logarithms of weights: it follows the cap where there is one,
    and `cap_scale` comes before it.
    """
    dtype: gl.constexpr = out_ptr.dtype.element_ty
    SLAB: gl.constexpr = PAGE if PAGE < MOST_SLAB else MOST_SLAB
    PANELS: gl.constexpr = D // PANEL
    NUM_SLABS: gl.constexpr = STAGES * PANELS * (N // SLAB)
    shared: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    q_shared: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=3)
    bar: gl.constexpr = mbarrier.MBarrierLayout()
    q_all = gl.allocate_shared_memory(
        dtype, [2 * CONSUMERS * PANELS, HALF // GROUP_PAD, GROUP_PAD, PANEL], q_shared
    )
    k_all = gl.allocate_shared_memory(dtype, [NUM_SLABS, SLAB, PANEL], shared)
    v_all = gl.allocate_shared_memory(dtype, [NUM_SLABS, SLAB, PANEL], shared)
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], bar)
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], bar)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], bar)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    for place in gl.static_range(2):
        mbarrier.init(q_full.index(place), count=1)
        mbarrier.init(q_empty.index(place), count=CONSUMERS)
    for place in gl.static_range(STAGES):
        mbarrier.init(k_full.index(place), count=1)
        mbarrier.init(k_empty.index(place), count=CONSUMERS)
        mbarrier.init(v_full.index(place), count=1)
        mbarrier.init(v_empty.index(place), count=CONSUMERS)
    mbarrier.init(v_full.index(STAGES), count=1)
    fence_async_shared()
    places = (q_all, k_all, v_all, q_full, q_empty, k_full, k_empty, v_full, v_empty)
    inputs = (queries, keys, items_ptr, tables_ptr, table_stride, num_work, num_rows)
    results = (out_ptr, parts_ptr, part_weights_ptr, items_ptr, num_work, part_rows)
    softmax = (scale_log2, cap_scale, cap, window)
    gl.warp_specialize(
        [
            (_consume, (
                results, softmax, places, 0,
                KV, GROUP, GROUP_PAD, D, N, SLAB, STAGES, HAS_WINDOW, HAS_CAP,
            )),
            (_consume, (
                results, softmax, places, 1,
                KV, GROUP, GROUP_PAD, D, N, SLAB, STAGES, HAS_WINDOW, HAS_CAP,
            )),
            (fetch, (inputs, places, KV, GROUP, GROUP_PAD, PAGE, D, N, SLAB, STAGES)),
        ],
        [4, 1],
        [_CONSUMER_REGISTERS, _PRODUCER_REGISTERS],
    )  # fmt: skip
