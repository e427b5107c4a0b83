"""What attention of decodes on Hopper works on: who takes which item, and its keys asked for.

Knows items, tickets, the copy engine and the paged cache; no arithmetic of attention. A program
walks along the tiles of its items with a cursor, some tiles ahead of where it computes: the keys
and values of the tile that the cursor is at are asked for, and the blocks of the next one looked
up. An item that is done is followed by the first that is nobody's yet, for programs are not equally
fast; their numbers are drawn from a counter.

A tile is of slabs of 16 tokens, which lie in a block in one piece for each KV head. One copy brings
a slab's keys and values, in panels of 64 dimensions, as far as the engine interleaves. A slab
behind the last key is asked for beyond the cache's end, where the engine fills in zeros.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from octavo.kernels.layout import DECODE_SLAB, ITEM_FIELDS
from octavo.kernels.slab_rows import slab_rows

_ITEM = gl.constexpr(ITEM_FIELDS)
SLAB = gl.constexpr(DECODE_SLAB)


@gluon.jit
def first_of(program, num_work, lists, KV: gl.constexpr, PAGE: gl.constexpr, SLABS: gl.constexpr):
    """A program's cursor at its first item, which has the program's number."""
    return _open(gl.where(program < num_work, program, -1), lists, KV, PAGE, SLABS)


@gluon.jit
def _open(work, lists, KV: gl.constexpr, PAGE: gl.constexpr, SLABS: gl.constexpr):
    """A cursor at the first tile of an item, or at none where `work` is below 0."""
    items_ptr, tables_ptr, table_stride, num_rows = lists
    exists = work >= 0
    item = items_ptr + gl.where(exists, work // KV, 0) * _ITEM
    seq = gl.load(item, mask=exists, other=0)
    begin = gl.load(item + 4, mask=exists, other=0)
    end = gl.load(item + 5, mask=exists, other=0)
    table = tables_ptr + seq.to(gl.int64) * table_stride
    start = begin // SLAB * SLAB
    rows = slab_rows(table, start, end, work % KV, num_rows, KV, PAGE, SLAB, SLABS)
    return work, start, end, table, rows


@gluon.jit
def _draw(tickets_ptr, num_work):
    """The number of the first item that is nobody's, or -1.

    A program draws until it finds none, so that there are `num_work` draws in all; the last one
    leaves the counter as the next launch wants it.
    """
    drawn = gl.atomic_add(tickets_ptr, 1, sem="relaxed")
    if drawn == num_work - 1:
        gl.store(tickets_ptr, 0)
    work = drawn + gl.num_programs(0)
    return gl.where(work < num_work, work, -1)


@gluon.jit
def ask(
    cursor,
    tile,
    keys,
    lists,
    tickets_ptr,
    num_work,
    slabs,
    full,
    KV: gl.constexpr,
    PAGE: gl.constexpr,
    D: gl.constexpr,
    SLABS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Ask for the tile that the cursor is at, if at any, into the place of the program's `tile`-th.

    Returns the cursor, moved on.
    """
    work, start, end, table, rows = cursor
    if work >= 0:
        place = tile % STAGES
        mbarrier.expect(full.index(place), SLABS * SLAB * 2 * D * 2)
        for slab in gl.static_range(SLABS):
            tma.async_copy_global_to_shared(
                keys, [0, 0, rows[slab], 0], full.index(place), slabs.index(place * SLABS + slab)
            )
        start += SLABS * SLAB
        if start < end:
            rows = slab_rows(table, start, end, work % KV, lists[3], KV, PAGE, SLAB, SLABS)
        else:
            work = _draw(tickets_ptr, num_work)
            work, start, end, table, rows = _open(work, lists, KV, PAGE, SLABS)
    return work, start, end, table, rows


@gluon.jit
def shifted(queue, last, LENGTH: gl.constexpr):
    """A queue without its first, and with another last."""
    moved = ()
    for i in gl.static_range(1, LENGTH):
        moved = moved + (queue[i],)  # type: ignore[assignment]  # noqa: RUF005
    return moved + (last,)  # noqa: RUF005
