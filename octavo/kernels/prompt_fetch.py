"""What attention of prompts on Hopper works on, fetched by one warp; see `prompt_attention.py`.

Knows the copy engine, the paged cache and who may use which place when. Copies are of whole blocks,
as many to a tile as it has; a block beyond the last key is asked for beyond the cache's end, where
the engine fills in zeros. What lies behind the last key within a block is set to zero before it is
used: a weight of 0 times what an earlier owner left must be 0.

In shared memory a tile lies in panels of 64 dimensions (128 bytes, as far as the engine
interleaves), a panel in slabs of a block's tokens, one behind the other: which is also how products
want a tile.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from octavo.kernels.layout import (
    ITEM_FIELDS,
    PROMPT_HALF,
    PROMPT_PANEL,
    PROMPT_ROWS,
    PROMPT_SLAB,
)
from octavo.kernels.slab_rows import slab_rows

_ITEM = gl.constexpr(ITEM_FIELDS)
ROWS, HALF = gl.constexpr(PROMPT_ROWS), gl.constexpr(PROMPT_HALF)
PANEL, MOST_SLAB = gl.constexpr(PROMPT_PANEL), gl.constexpr(PROMPT_SLAB)
CONSUMERS = gl.constexpr(PROMPT_ROWS // PROMPT_HALF)
"""Groups of warps that multiply."""


@gluon.jit
def item_of(turn, num_work, items_ptr, KV: gl.constexpr):
    """Where a program's item lies, its KV head, and its row of the tables, below 0: none.

    Items come longest first: every other turn goes backwards, so that no program gets the longest
    of each.
    """
    program, programs = gl.program_id(0), gl.num_programs(0)
    work = turn * programs + gl.where(turn % 2 == 0, program, programs - 1 - program)
    exists = work < num_work
    work = gl.where(exists, work, 0)
    item = items_ptr + work // KV * _ITEM
    return item, work % KV, gl.load(item, mask=exists, other=-1)


@gluon.jit
def fetch(
    inputs,
    places,
    KV: gl.constexpr,
    GROUP: gl.constexpr,
    GROUP_PAD: gl.constexpr,
    PAGE: gl.constexpr,
    D: gl.constexpr,
    N: gl.constexpr,
    SLAB: gl.constexpr,
    STAGES: gl.constexpr,
):
    """One warp: fetches all that the program's items need, as places become free."""
    queries, keys, items_ptr, tables_ptr, table_stride, num_work, num_rows = inputs
    q_all, k_all, v_all, q_full, q_empty, k_full, k_empty, v_full, v_empty = places
    PANELS: gl.constexpr = D // PANEL
    SLABS: gl.constexpr = N // SLAB
    TILE_BYTES: gl.constexpr = N * D * 2
    slab_layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    num_tiles = 0
    num_items = 0
    num_torn = 0
    for turn in range(gl.cdiv(num_work, gl.num_programs(0))):
        item, head, seq = item_of(turn, num_work, items_ptr, KV)
        exists = seq >= 0
        first = gl.load(item + 1, mask=exists, other=0)
        begin = gl.load(item + 4, mask=exists, other=0)
        end = gl.load(item + 5, mask=exists, other=0)
        table = tables_ptr + seq.to(gl.int64) * table_stride
        if end > begin:
            place = num_items % 2
            mbarrier.wait(q_empty.index(place), (num_items // 2 & 1) ^ 1)
            mbarrier.expect(q_full.index(place), ROWS * D * 2)
            for half in gl.static_range(CONSUMERS):
                for panel in gl.static_range(PANELS):
                    tma.async_copy_global_to_shared(
                        queries,
                        [first + half * (HALF // GROUP_PAD), head * GROUP, panel * PANEL],
                        q_full.index(place),
                        q_all.index((place * CONSUMERS + half) * PANELS + panel),
                    )
            num_items += 1
        for start in range(begin // SLAB * SLAB, end, N):
            rows = slab_rows(table, start, end, head, num_rows, KV, PAGE, SLAB, SLABS)
            place = num_tiles % STAGES
            phase = num_tiles // STAGES & 1
            mbarrier.wait(k_empty.index(place), phase ^ 1)
            mbarrier.expect(k_full.index(place), TILE_BYTES)
            for slab in gl.static_range(SLABS):
                for panel in gl.static_range(PANELS):
                    tma.async_copy_global_to_shared(
                        keys,
                        [rows[slab], panel * PANEL],
                        k_full.index(place),
                        k_all.index((place * PANELS + panel) * SLABS + slab),
                    )
            mbarrier.wait(v_empty.index(place), phase ^ 1)
            # The last barrier is this warp's own, to hear of values that it has to change.
            is_torn = (end % SLAB > 0) & (start + N >= end)
            arrived = v_full.index(gl.where(is_torn, STAGES, place))
            mbarrier.expect(arrived, TILE_BYTES)
            for slab in gl.static_range(SLABS):
                for panel in gl.static_range(PANELS):
                    tma.async_copy_global_to_shared(
                        keys,
                        [rows[slab] + KV * PAGE, panel * PANEL],
                        arrived,
                        v_all.index((place * PANELS + panel) * SLABS + slab),
                    )
            if is_torn:
                mbarrier.wait(arrived, num_torn & 1)
                num_torn += 1
                token = gl.arange(0, SLAB, layout=gl.SliceLayout(1, slab_layout))
                is_key = (token < end % SLAB)[:, None]
                for panel in gl.static_range(PANELS):
                    last = (place * PANELS + panel) * SLABS + (end - start) // SLAB
                    torn = v_all.index(last)
                    values = torn.load(slab_layout)
                    torn.store(gl.where(is_key, values, gl.zeros_like(values)))
                fence_async_shared()
                mbarrier.arrive(v_full.index(place), count=1)
            num_tiles += 1
