"""Who computes what in a step: query tiles, and the ranges of keys they are divided into.

Pure host arithmetic on a `BatchLayout`; knows nothing of tensors or of how a kernel computes.

Few long sequences would leave most of a GPU idle if every tile's keys were one program's work, so
keys are divided into chunks, short enough that all programs together fill the device
(Flash-Decoding). Tiles that no such division serves keep all their keys. Decodes that share a
prefix are tiles as well, of tokens of different sequences: they leave parts, and so do the keys
that each of them has alone.

This runs once a step and on one thread: arrays are small, and what counts is how many calls of
numpy there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from octavo.kernels.layout import ITEM_FIELDS, MERGE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.attention.interface import BatchLayout, IntArray
    from octavo.attention.shared_prefix import SharedPrefix

Table = npt.NDArray[np.int32]
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Heads:
    """KV heads, and the query heads that share one (`group`)."""

    num_kv_heads: int
    group: int


@dataclass(frozen=True, slots=True)
class TileShape:
    """How one kind of launch cuts its work.

    Attributes:
        tokens: most query tokens of a tile, >= 1.
        key_tile: keys that a program folds in at a time; chunks are whole tiles.
        num_programs: programs for each KV head that a launch should have, so that the device is
            full, >= 1.
        min_chunk: fewest keys worth a program of their own.
        max_chunk: most keys of a program, if `most_programs` suffice for that; None: any number.
            A program that reads alone what takes as long as everything else holds the launch up.
        most_programs: for each KV head, that a launch may have besides one for each tile.
    """

    tokens: int
    key_tile: int
    num_programs: int
    min_chunk: int
    max_chunk: int | None = None
    most_programs: int = 0

    @property
    def more_chunks(self) -> int:
        """Chunks that there are at most besides one for each tile; see `bounds.py`."""
        return max(self.num_programs, self.most_programs) - 1


@dataclass(frozen=True, slots=True)
class StepShape:
    """The size of a step for which a graph is captured; smaller ones fit into it.

    Attributes:
        num_tokens: most tokens, >= `num_seqs`. Equal to it: every sequence has one (decodes).
        num_seqs: most sequences, >= 1.
        shares: decodes may share prefixes.
    """

    num_tokens: int
    num_seqs: int
    shares: bool = False

    @property
    def is_decode(self) -> bool:
        """Whether every sequence has one token."""
        return self.num_tokens == self.num_seqs


@dataclass(frozen=True, slots=True)
class Tiles:
    """Query tokens, and a range of keys for them: [n] each.

    Attributes:
        row: of the table of blocks.
        first: the first token in the batch.
        num_tokens: >= 1.
        first_pos: position of the first token; the others follow.
        key_begin: first key, and
        key_end: end of the keys, > `key_begin`.
        in_batch: whether tokens lie side by side in the batch; otherwise they do so in a list of
            tokens, and `first` is a place there.
    """

    row: IntArray
    first: IntArray
    num_tokens: IntArray
    first_pos: IntArray
    key_begin: IntArray
    key_end: IntArray
    in_batch: bool = True


@dataclass(frozen=True, slots=True)
class Division:
    """What programs do about some tiles.

    Attributes:
        items: [n, ITEM_FIELDS], the longest first.
        parted: [m] which tiles leave parts instead of results.
        part_row: [m] first row of the first part of each of these.
        num_parts: [m] of these; they lie one behind the other.
        num_part_rows: rows of all parts, per KV head.
    """

    items: Table
    parted: IntArray
    part_row: IntArray
    num_parts: IntArray
    num_part_rows: int


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Shared prefixes of a step, computed for all members at once.

    Attributes:
        items: [n, ITEM_FIELDS], the longest first.
        seqs: [m] the sequences whose tokens are listed for `items`.
        shared_len: [s] keys of each sequence that `items` take care of, or 0.
        runs: [s, 3] first row, number and distance in rows of each sequence's parts, or 0.
        num_part_rows: rows of parts, per KV head.
    """

    items: Table
    seqs: IntArray
    shared_len: IntArray
    runs: Table
    num_part_rows: int


def spread(lens: IntArray, most: int) -> tuple[IntArray, IntArray, IntArray]:
    """Cut each of `lens` into pieces of up to `most`: whose, beginning where, and how long."""
    num_pieces = -(-lens // most)
    whose = np.repeat(np.arange(len(lens)), num_pieces)
    first_piece = np.cumsum(num_pieces) - num_pieces
    begin = (np.arange(len(whose)) - first_piece[whose]) * most
    return whose, begin, np.minimum(lens[whose] - begin, most)


def tile_sequences(
    layout: BatchLayout,
    rows: IntArray,
    seqs: IntArray | slice,
    window: int | None,
    tokens: int | None,
) -> Tiles:
    """Tiles of some of the batch's sequences.

    Args:
        layout: the step.
        rows: [s] row of each sequence in the table of blocks.
        seqs: which.
        window: sliding window, or None.
        tokens: most of a tile; None: every sequence is one.
    """
    row, first, first_pos = rows[seqs], layout.query_starts[:-1][seqs], layout.context_lens[seqs]
    num_tokens = layout.query_starts[1:][seqs] - first
    if tokens is not None:
        whose, begin, num_tokens = spread(num_tokens, tokens)
        row, first, first_pos = row[whose], first[whose] + begin, first_pos[whose] + begin
    if window is None:
        key_begin = np.zeros_like(first_pos)
    else:
        key_begin = np.maximum(first_pos - (window - 1), 0)
    return Tiles(row, first, num_tokens, first_pos, key_begin, first_pos + num_tokens)


def divide(
    tiles: Tiles,
    shape: TileShape,
    heads: Heads,
    must_part: npt.NDArray[np.bool_] | None = None,
    first_row: int = 0,
) -> Division:
    """Chunks of the tiles' keys.

    Args:
        tiles: all of one launch.
        shape: of the tiles.
        heads: of the model.
        must_part: [n] tiles that leave a part even if their keys are not divided.
        first_row: where parts may begin.
    """
    num_keys = tiles.key_end - tiles.key_begin
    num_tiles = len(num_keys)
    chunk = _chunk_len(int(num_keys.sum()), shape)
    num_chunks = -(-num_keys // chunk)
    is_parted = num_chunks > 1
    is_divided = bool(is_parted.any())
    if must_part is not None:
        is_parted |= must_part
    parted = np.flatnonzero(is_parted)

    items = np.zeros((num_tiles, ITEM_FIELDS), np.int32)
    items[:, 0] = tiles.row
    items[:, 1] = tiles.first
    items[:, 2] = tiles.num_tokens
    items[:, 3] = tiles.first_pos
    items[:, 4] = tiles.key_begin
    items[:, 5] = tiles.key_end
    items[:, 6] = -1
    if not tiles.in_batch:
        items[:, 7] = 1
    # Parts of a tile lie one behind the other, each as many rows as the tile has query rows.
    num_parts = num_chunks[parted]
    num_rows = tiles.num_tokens[parted] * (heads.group * num_parts)
    part_row = np.cumsum(num_rows) - num_rows + first_row
    items[parted, 6] = items[parted, 8] = part_row
    items[parted, 9] = num_parts
    if is_divided:
        whose, begin, num_keys = spread(num_keys, chunk)
        items = items[whose]
        items[:, 4] += begin.astype(np.int32)
        items[:, 5] = items[:, 4] + num_keys
        # Where there is one chunk it is the 0th, and no row is added.
        rows_before = begin // chunk * heads.group * items[:, 2]
        items[:, 6] += rows_before.astype(np.int32)
    items = items[np.argsort(-num_keys, kind="stable")]
    items[:, 10] = len(items)
    return Division(items, parted, part_row, num_parts, int(num_rows.sum()))


def merge_tiles(tiles: Tiles, division: Division, heads: Heads) -> Table:
    """[m, MERGE_FIELDS], a row for each tile that left parts."""
    parted = division.parted
    merges = np.zeros((len(parted), MERGE_FIELDS), np.int32)
    if len(parted):
        merges[:, 0] = tiles.first[parted]
        merges[:, 1] = tiles.num_tokens[parted]
        merges[:, 2] = division.part_row
        merges[:, 3] = division.num_parts
        merges[:, 4] = merges[:, 1] * heads.group
    return merges


def merge_tokens(
    tiles: Tiles, division: Division, heads: Heads, more: Table | None = None
) -> Table:
    """[m, MERGE_FIELDS], a row for each token of a tile that left parts.

    Args:
        tiles: whose parts.
        division: of these.
        heads: of the model.
        more: [n, 3] a second run of parts of each tile, which then has one token: first row,
            number, rows from one to the next.
    """
    merges = merge_tiles(tiles, division, heads)
    if more is not None and len(merges):
        merges[:, 5:8] = more[division.parted]
    if (merges[:, 1] > 1).any():
        whose, place, _ = spread(merges[:, 1].astype(np.int64), 1)
        merges = merges[whose]
        merges[:, 0] += place.astype(np.int32)
        merges[:, 1] = 1
        merges[:, 2] += place.astype(np.int32) * heads.group
    return merges


def share(
    shared: Sequence[SharedPrefix],
    rows: IntArray,
    block_size: int,
    shape: TileShape,
    heads: Heads,
) -> Prefixes:
    """Tiles of decodes of different sequences, for the keys that they have in common.

    Args:
        shared: of decodes, none in two of them.
        rows: [s] row of each sequence in the table of blocks.
        block_size: tokens of a block.
        shape: of the tiles.
        heads: of the model.
    """
    seqs = np.concatenate([_NONE, *(prefix.seqs for prefix in shared)])
    num_members = np.array([len(prefix.seqs) for prefix in shared], np.int64)
    lens = np.array([len(prefix.block_ids) for prefix in shared], np.int64) * block_size
    first_member = np.cumsum(num_members) - num_members
    whose, begin, num_tokens = spread(num_members, shape.tokens)
    first = first_member[whose] + begin
    tiles = Tiles(
        row=rows[seqs[first_member]][whose],
        first=first,
        num_tokens=num_tokens,
        first_pos=lens[whose],  # all that follow as well see all keys
        key_begin=np.zeros_like(first),
        key_end=lens[whose],
        in_batch=False,
    )
    division = divide(tiles, shape, heads, must_part=np.ones(len(first), np.bool_))

    tile = np.repeat(np.arange(len(first)), num_tokens)
    place = np.arange(len(seqs)) - first[tile]
    runs = np.zeros((len(rows), 3), np.int32)
    runs[seqs, 0] = division.part_row[tile] + place * heads.group
    runs[seqs, 1] = division.num_parts[tile]
    runs[seqs, 2] = num_tokens[tile] * heads.group
    shared_len = np.zeros(len(rows), np.int64)
    shared_len[seqs] = np.repeat(lens, num_members)
    return Prefixes(division.items, seqs, shared_len, runs, division.num_part_rows)


def _chunk_len(num_keys: int, shape: TileShape) -> int:
    """Keys of a chunk: an equal share of all keys for each program that the device has room for."""
    chunk = max(-(-num_keys // shape.num_programs), shape.min_chunk)
    if shape.max_chunk is not None:
        chunk = max(min(chunk, shape.max_chunk), -(-num_keys // shape.most_programs))
    return -(-chunk // shape.key_tile) * shape.key_tile
