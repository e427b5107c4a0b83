"""Who computes what in a step: query tiles, and the ranges of keys they are divided into.

Pure host arithmetic on a `BatchLayout`; knows nothing of tensors or of how a kernel computes.

Few long sequences would leave most of a GPU idle if every tile's keys were one program's work, so
keys are divided into chunks, short enough that all programs together fill the device
(Flash-Decoding). Tiles that no such division serves keep all their keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from octavo.kernels.layout import ITEM_FIELDS, MERGE_FIELDS

if TYPE_CHECKING:
    from octavo.attention.interface import BatchLayout, IntArray

Table = npt.NDArray[np.int32]


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
        num_programs: programs that a launch should have, so that the device is full.
        min_chunk: fewest keys worth a program of their own.
    """

    tokens: int
    key_tile: int
    num_programs: int
    min_chunk: int


@dataclass(frozen=True, slots=True)
class StepShape:
    """The size of a step for which a graph is captured; smaller ones fit into it.

    Attributes:
        num_tokens: most tokens, >= `num_seqs`. Equal to it: every sequence has one (decodes).
        num_seqs: most sequences, >= 1.
    """

    num_tokens: int
    num_seqs: int

    @property
    def is_decode(self) -> bool:
        """Whether every sequence has one token."""
        return self.num_tokens == self.num_seqs


@dataclass(frozen=True, slots=True)
class Work:
    """A launch: rows as `kernels.layout` describes them.

    Attributes:
        items: [n, ITEM_FIELDS], the longest first.
        merges: [m, MERGE_FIELDS], one for each tile whose keys were divided.
        num_part_rows: rows of parts that the items write, per KV head.
        merge_tokens: most tokens of a merge.
    """

    items: Table
    merges: Table
    num_part_rows: int
    merge_tokens: int


def divide(
    layout: BatchLayout, seqs: IntArray, window: int | None, shape: TileShape, heads: Heads
) -> Work:
    """Work of one launch over some of the batch's sequences.

    Args:
        layout: the step.
        seqs: which sequences.
        window: sliding window, or None.
        shape: of the tiles.
        heads: of the model.
    """
    query_lens = layout.query_lens[seqs]
    tiles_of_seq = -(-query_lens // shape.tokens)
    seq = np.repeat(seqs, tiles_of_seq)
    first_tile = np.cumsum(tiles_of_seq) - tiles_of_seq
    tile_in_seq = np.arange(len(seq)) - np.repeat(first_tile, tiles_of_seq)
    offset = tile_in_seq * shape.tokens
    num_tokens = np.minimum(shape.tokens, layout.query_lens[seq] - offset)
    first_token = layout.query_starts[seq] + offset
    first_pos = layout.context_lens[seq] + offset
    key_end = first_pos + num_tokens
    key_begin = np.zeros_like(key_end)
    if window is not None:
        key_begin = np.maximum(first_pos - window + 1, 0)

    num_keys = key_end - key_begin
    chunk = _chunk_len(num_keys, shape, heads)
    num_chunks = -(-num_keys // chunk)
    tile = np.repeat(np.arange(len(seq)), num_chunks)
    first_chunk = np.cumsum(num_chunks) - num_chunks
    chunk_in_tile = np.arange(len(tile)) - first_chunk[tile]

    # Parts of a tile lie one behind the other, each as many rows as the tile has query rows.
    rows = num_tokens * heads.group
    divided = num_chunks > 1
    rows_of_tile = np.where(divided, rows * num_chunks, 0)
    first_row = np.cumsum(rows_of_tile) - rows_of_tile

    items = np.zeros((len(tile), ITEM_FIELDS), np.int32)
    items[:, 0] = seq[tile]
    items[:, 1] = first_token[tile]
    items[:, 2] = num_tokens[tile]
    items[:, 3] = first_pos[tile]
    items[:, 4] = key_begin[tile] + chunk_in_tile * chunk
    items[:, 5] = np.minimum(items[:, 4] + chunk, key_end[tile])
    items[:, 6] = np.where(divided[tile], first_row[tile] + chunk_in_tile * rows[tile], -1)
    items = items[np.argsort(items[:, 4] - items[:, 5], kind="stable")]

    cut = np.flatnonzero(divided)
    merges = np.zeros((len(cut), MERGE_FIELDS), np.int32)
    merges[:, 0] = first_token[cut]
    merges[:, 1] = num_tokens[cut]
    merges[:, 2] = first_row[cut]
    merges[:, 3] = num_chunks[cut]
    merge_tokens = int(num_tokens[cut].max(initial=0))
    return Work(items, merges, int(rows_of_tile.sum()), merge_tokens)


def most_tiles(step: StepShape, tokens: int, shortest: int) -> int:
    """Most tiles of up to `tokens` of the sequences of `shortest` new tokens or more, at least 1.

    n sequences of q_i tokens have sum(1 + (q_i - 1) // tokens) <= n + (num_tokens - n) // tokens
    tiles, the more the larger n is.
    """
    num_seqs = min(step.num_seqs, step.num_tokens // shortest)
    return max(num_seqs + (step.num_tokens - num_seqs) // tokens, 1)


def pad(work: Work, step: StepShape, num_tiles: int, shape: TileShape, heads: Heads) -> Work:
    """The same work in tables of a size that depends on nothing but the other arguments.

    With p programs for each KV head, a chunk has c keys such that n_i keys of the tiles satisfy
    sum(n_i) <= p * c. Tile i has 1 + (n_i - 1) // c chunks, hence all of them together at most
    p - 1 more than there are tiles. A divided tile has more than c keys, so at most p - 1 are.

    Args:
        work: of any step within `step`.
        step: the largest.
        num_tiles: most tiles of this launch in such a step.
        shape: of the tiles.
        heads: of the model.
    """
    more_chunks = _num_programs(shape, heads) - 1
    most_items = num_tiles + more_chunks
    most_merges = min(num_tiles, more_chunks)
    tokens = 1 if step.is_decode else shape.tokens
    # Every part of a tile has as many tokens as the tile; the first parts no more than the step.
    most_part_tokens = min(step.num_tokens, most_merges * tokens) + more_chunks * tokens
    most_part_rows = most_part_tokens * heads.group if most_merges else 0
    assert len(work.items) <= most_items
    assert len(work.merges) <= most_merges
    assert work.num_part_rows <= most_part_rows
    assert work.merge_tokens <= tokens
    items = np.full((most_items, ITEM_FIELDS), -1, np.int32)
    items[: len(work.items)] = work.items
    merges = np.full((most_merges, MERGE_FIELDS), -1, np.int32)
    merges[: len(work.merges)] = work.merges
    return Work(items, merges, most_part_rows, tokens)


def _num_programs(shape: TileShape, heads: Heads) -> int:
    """For each KV head."""
    return max(shape.num_programs // heads.num_kv_heads, 1)


def _chunk_len(num_keys: IntArray, shape: TileShape, heads: Heads) -> int:
    """Keys of a chunk: an equal share of all keys for each program that the device has room for."""
    chunk = max(-(-int(num_keys.sum()) // _num_programs(shape, heads)), shape.min_chunk)
    return -(-chunk // shape.key_tile) * shape.key_tile
