"""Where the copy engine finds the slabs of a tile: tokens of one KV head, in one piece of a block.

For kernels in Gluon. A row is one token's keys or values of one head; the cache is
[b, 2, k, p, d], so a slab's values lie `KV * PAGE` rows behind its keys.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def slab_rows(
    table,
    start,
    end,
    head,
    num_rows,
    KV: gl.constexpr,
    PAGE: gl.constexpr,
    SLAB: gl.constexpr,
    SLABS: gl.constexpr,
):
    """First row of each slab's keys, from position `start` on; beyond the cache behind `end`.

    There, behind row `num_rows`, the engine fills in zeros.
    """
    rows = ()
    for slab in gl.static_range(SLABS):
        pos = start + slab * SLAB
        block = gl.load(table + pos // PAGE, mask=pos < end, other=0)
        row = (block * (2 * KV) + head) * PAGE + pos % PAGE
        row = gl.where(pos < end, row, num_rows)
        rows = rows + (row,)  # type: ignore[assignment]  # noqa: RUF005  Triton's tuples
    return rows
