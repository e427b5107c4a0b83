"""How large the tables of a step can become: what a graph's tables have room for.

Programs that find nothing to do still take time, so these are the least that can be promised of any
step of a shape. They rest on one thing (`work.divide`): with p programs for each KV head, chunks
have c keys such that the n_i keys of the tiles satisfy sum(n_i) <= p * c. Tile i has
1 + (n_i - 1) // c chunks, hence all together at most p - 1 more than there are tiles. And a tile
that is divided has more than c keys, so at most p - 1 are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from octavo.attention.work import Heads, StepShape, Table, TileShape


@dataclass(frozen=True, slots=True)
class Bound:
    """Of one kind of launch.

    Attributes:
        items: rows of that table.
        others: rows of merges; of shared prefixes, members.
        part_rows: rows of parts, per KV head.
    """

    items: int
    others: int
    part_rows: int


def bound_short(step: StepShape, shape: TileShape, heads: Heads, first_row: int) -> Bound:
    """Sequences of up to `shape.tokens` new tokens, each of them a tile; merges are of one token.

    If the step shares, every decode may leave a part; parts begin at up to `first_row`.
    """
    more_chunks = shape.more_chunks
    tokens = 1 if step.is_decode else shape.tokens
    # Sequences that are divided have up to `tokens`; the others that leave parts are decodes.
    num_divided = min(step.num_seqs, more_chunks)
    merges = num_divided * tokens
    if step.shares:
        merges += step.num_seqs - num_divided
    merges = min(merges, step.num_tokens)
    part_rows = (merges + more_chunks * tokens) * heads.group
    return Bound(step.num_seqs + more_chunks, merges, first_row + part_rows)


def bound_long(step: StepShape, shape: TileShape, heads: Heads, shortest: int) -> Bound:
    """Sequences of `shortest` new tokens or more; merges are of tiles."""
    more_chunks = shape.more_chunks
    tiles = _most_tiles(step.num_seqs, step.num_tokens, shape.tokens, shortest)
    merges = min(tiles, more_chunks)
    part_tokens = min(step.num_tokens, merges * shape.tokens) + more_chunks * shape.tokens
    return Bound(tiles + more_chunks, merges, part_tokens * heads.group)


def bound_prefixes(step: StepShape, shape: TileShape, heads: Heads, min_seqs: int) -> Bound:
    """Prefixes of at least `min_seqs` decodes each; every tile leaves parts."""
    more_chunks = shape.more_chunks
    tiles = _most_tiles(step.num_seqs, step.num_seqs, shape.tokens, min_seqs)
    part_tokens = step.num_seqs + more_chunks * shape.tokens
    return Bound(tiles + more_chunks, step.num_seqs, part_tokens * heads.group)


def _most_tiles(num_groups: int, num_tokens: int, most: int, fewest: int) -> int:
    """Tiles of up to `most` tokens that groups of at least `fewest` tokens make; at least 1.

    n groups of q_i tokens make sum(1 + (q_i - 1) // most) <= n + (num_tokens - n) // most tiles,
    the more the larger n is.
    """
    num_groups = min(num_groups, num_tokens // fewest)
    return max(num_groups + (num_tokens - num_groups) // most, 1)


def pad(table: Table, num_rows: int) -> Table:
    """With rows of -1, which kernels leave alone, behind its own."""
    assert len(table) <= num_rows
    padded = np.full((num_rows, *table.shape[1:]), -1, np.int32)
    padded[: len(table)] = table
    return padded
