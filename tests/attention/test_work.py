"""The division of a step's work, without any device."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from octavo.attention.interface import BatchLayout
from octavo.attention.work import (
    Heads,
    TileShape,
    divide,
    merge_tiles,
    merge_tokens,
    tile_sequences,
)

if TYPE_CHECKING:
    from octavo.attention.work import Division, Tiles

SEQS = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 5000)), min_size=1, max_size=12)
SHAPES = st.builds(
    TileShape,
    tokens=st.integers(1, 64),
    key_tile=st.sampled_from([16, 64]),
    num_programs=st.sampled_from([1, 8, 66]),
    min_chunk=st.sampled_from([1, 128, 512]),
)
HEADS = st.builds(Heads, num_kv_heads=st.integers(1, 8), group=st.integers(1, 8))


def layout_of(seqs: list[tuple[int, int]]) -> BatchLayout:
    starts = np.cumsum([0, *(new for new, _ in seqs)])
    context = np.array([old for _, old in seqs], np.int64)
    return BatchLayout(starts, context, np.zeros((len(seqs), 1), np.int64))


def work_of(seqs: list[tuple[int, int]], shape: TileShape, heads: Heads) -> tuple[Tiles, Division]:
    rows = np.arange(len(seqs))
    tiles = tile_sequences(layout_of(seqs), rows, slice(None), None, shape.tokens)
    return tiles, divide(tiles, shape, heads)


@given(SEQS, st.none() | st.integers(1, 6000), SHAPES, HEADS, st.booleans())
def test_every_visible_key_is_read_once_and_every_part_merged_once(
    seqs: list[tuple[int, int]],
    window: int | None,
    shape: TileShape,
    heads: Heads,
    by_token: bool,
) -> None:
    layout = layout_of(seqs)
    chosen = np.arange(0, len(seqs), 2)
    rows = np.arange(len(seqs))[::-1] + 5
    tiles = tile_sequences(layout, rows, chosen, window, shape.tokens)
    division = divide(tiles, shape, heads, first_row=7)
    merges = (merge_tokens if by_token else merge_tiles)(tiles, division, heads)

    ranges: dict[int, list[tuple[int, int]]] = {}
    writers: dict[int, int] = {}
    parts: dict[int, set[int]] = {}
    seq_of_row = {row: seq for seq, row in enumerate(rows.tolist())}
    for row, first, count, pos, begin, end, part, is_listed, *own in division.items.tolist():
        seq = seq_of_row[row]
        assert not is_listed
        assert seq in chosen
        assert 1 <= count <= shape.tokens
        assert begin < end
        assert part == -1 or 7 <= part <= 7 + division.num_part_rows - count * heads.group
        if part == -1:
            assert own == [0, 0, len(division.items), 0]
        else:  # which of the tile's parts this is
            place, beyond = divmod(part - own[0], count * heads.group)
            assert beyond == 0
            assert 0 <= place < own[1]
        for i in range(count):
            token = first + i
            assert pos + i == layout.context_lens[seq] + token - layout.query_starts[seq]
            ranges.setdefault(token, []).append((begin, end))
            if part == -1:
                writers[token] = writers.get(token, 0) + 1
            else:
                parts.setdefault(token, set()).add(part + i * heads.group)

    for first, num_tokens, first_row, count, step, *others in merges.tolist():
        assert others == [0, 0, 0]
        assert num_tokens == 1 or not by_token
        for i in range(num_tokens):
            writers[first + i] = writers.get(first + i, 0) + 1
            own = first_row + i * heads.group
            assert parts.pop(first + i) == {own + j * step for j in range(count)}
    assert not parts

    expected = [t for s in chosen for t in range(*layout.query_starts[s : s + 2])]
    assert writers == dict.fromkeys(expected, 1)
    for seq in chosen:
        for token in range(*layout.query_starts[seq : seq + 2]):
            pos = layout.context_lens[seq] + token - layout.query_starts[seq]
            pieces = sorted(ranges[token])
            assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
            assert pieces[0][0] <= (0 if window is None else max(0, pos - window + 1))
            assert pieces[-1][1] > pos


def test_parts_do_not_overlap() -> None:
    _, division = work_of([(3, 900), (1, 4000), (1, 10)], TileShape(2, 64, 32, 64), Heads(2, 4))
    taken = np.zeros(division.num_part_rows, np.int64)
    for row in division.items.tolist():
        if row[6] >= 0:
            taken[row[6] : row[6] + row[2] * 4] += 1
    assert (taken == 1).all()


def test_the_longest_begin_first() -> None:
    _, division = work_of([(3, 900), (1, 4000), (1, 10)], TileShape(2, 64, 2, 64), Heads(2, 4))
    lens = division.items[:, 5] - division.items[:, 4]
    assert (np.diff(lens) <= 0).all()


def test_one_long_sequence_fills_the_device() -> None:
    _, division = work_of([(1, 8191)], TileShape(4, 64, 66, 64), Heads(8, 4))
    assert len(division.items) == 64
    assert len(division.parted) == 1


def test_many_sequences_are_not_divided() -> None:
    _, division = work_of([(1, 1000)] * 256, TileShape(4, 64, 66, 64), Heads(8, 4))
    assert len(division.items) == 256
    assert not len(division.parted)
