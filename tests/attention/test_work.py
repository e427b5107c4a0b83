"""The division of a step's work, without any device."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from octavo.attention.interface import BatchLayout
from octavo.attention.work import Heads, TileShape, divide

SEQS = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 5000)), min_size=1, max_size=12)
SHAPES = st.builds(
    TileShape,
    tokens=st.integers(1, 64),
    key_tile=st.sampled_from([16, 64]),
    num_programs=st.sampled_from([1, 8, 528]),
    min_chunk=st.sampled_from([1, 128, 512]),
)
HEADS = st.builds(Heads, num_kv_heads=st.integers(1, 8), group=st.integers(1, 8))


def layout_of(seqs: list[tuple[int, int]]) -> BatchLayout:
    starts = np.cumsum([0, *(new for new, _ in seqs)])
    context = np.array([old for _, old in seqs], np.int64)
    return BatchLayout(starts, context, np.zeros((len(seqs), 1), np.int64))


@given(SEQS, st.none() | st.integers(1, 6000), SHAPES, HEADS)
def test_every_visible_key_is_read_once_and_every_part_merged_once(
    seqs: list[tuple[int, int]], window: int | None, shape: TileShape, heads: Heads
) -> None:
    layout = layout_of(seqs)
    chosen = np.arange(0, len(seqs), 2)
    work = divide(layout, chosen, window, shape, heads)

    ranges: dict[int, list[tuple[int, int]]] = {}
    writers: dict[int, int] = {}
    rows: dict[int, set[int]] = {}
    for seq, first, count, pos, begin, end, part, _ in work.items.tolist():
        assert seq in chosen
        assert 1 <= count <= shape.tokens
        assert begin < end
        assert part == -1 or 0 <= part <= work.num_part_rows - count * heads.group
        for i in range(count):
            token = first + i
            assert pos + i == layout.context_lens[seq] + token - layout.query_starts[seq]
            ranges.setdefault(token, []).append((begin, end))
            if part == -1:
                writers[token] = writers.get(token, 0) + 1
            else:
                rows.setdefault(token, set()).add(part + i * heads.group)

    for token, first_row, count, step in work.merges.tolist():
        writers[token] = writers.get(token, 0) + 1
        assert rows.pop(token) == {first_row + j * step for j in range(count)}
    assert not rows

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
    layout = layout_of([(3, 900), (1, 4000), (1, 10)])
    work = divide(layout, np.arange(3), None, TileShape(2, 64, 64, 64), Heads(2, 4))
    taken = np.zeros(work.num_part_rows, np.int64)
    for row in work.items.tolist():
        if row[6] >= 0:
            taken[row[6] : row[6] + row[2] * 4] += 1
    assert (taken == 1).all()


def test_one_long_sequence_fills_the_device() -> None:
    layout = layout_of([(1, 8191)])
    work = divide(layout, np.arange(1), None, TileShape(4, 64, 528, 64), Heads(8, 4))
    assert len(work.items) == 64
    assert len(work.merges) == 1


def test_many_sequences_are_not_divided() -> None:
    layout = layout_of([(1, 1000)] * 256)
    work = divide(layout, np.arange(256), None, TileShape(4, 64, 528, 64), Heads(8, 4))
    assert len(work.items) == 256
    assert not len(work.merges)
