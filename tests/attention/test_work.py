"""The division of a step's work, without any device."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.attention.interface import AttentionSpec, BatchLayout
from octavo.attention.triton_paged import TritonAttention, Tuning
from octavo.attention.work import Heads, StepShape, TileShape, divide

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

    for first, num_tokens, first_row, count in work.merges.tolist():
        assert num_tokens <= work.merge_tokens
        for i in range(num_tokens):
            writers[first + i] = writers.get(first + i, 0) + 1
            own = first_row + i * heads.group
            step = num_tokens * heads.group
            assert rows.pop(first + i) == {own + j * step for j in range(count)}
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


def spec_of(heads: Heads, windows: frozenset[int | None] = frozenset({None})) -> AttentionSpec:
    num_heads = heads.num_kv_heads * heads.group
    return AttentionSpec(
        num_heads, heads.num_kv_heads, 16, torch.float32, torch.device("cpu"), 16, windows
    )


def idle(num_seqs: int) -> tuple[BatchLayout, np.ndarray]:
    return layout_of([(1, 0)] * num_seqs), np.full(num_seqs, -1)


@st.composite
def steps(draw: st.DrawFn) -> tuple[StepShape, list[tuple[int, int]]]:
    """A shape, and sequences that fit into it, often exactly."""
    lens = st.one_of(st.just(1), st.integers(2, 9), st.integers(1, 200))
    if draw(st.booleans()):
        lens = st.just(1)
    context = st.sampled_from([0, 15, 500, 4000]) | st.integers(0, 5000)
    seqs = draw(st.lists(st.tuples(lens, context), min_size=1, max_size=40))
    num_seqs = len(seqs) + draw(st.sampled_from([0, 0, 1, 7]))
    num_tokens = sum(new for new, _ in seqs) + draw(st.sampled_from([0, 0, 3, 50]))
    if all(new == 1 for new, _ in seqs) and draw(st.booleans()):
        num_tokens = num_seqs
    return StepShape(max(num_tokens, num_seqs), num_seqs), seqs


@settings(max_examples=300)
@given(steps(), HEADS, st.integers(1, 40), st.sampled_from([16, 100, 2000]))
def test_any_step_fits_into_the_tables_of_its_shape(
    step: tuple[StepShape, list[tuple[int, int]]], heads: Heads, num_sms: int, min_chunk: int
) -> None:
    shape, seqs = step
    if all(new == 1 for new, _ in seqs):
        shape = step[0]
    elif shape.is_decode:
        shape = StepShape(shape.num_tokens + 1, shape.num_seqs)
    spec = spec_of(heads, frozenset({None, 300}))
    short = Tuning(16, 16, 4, 2, 1, min_chunk)
    backend = TritonAttention(short, Tuning(32, 16, 4, 2, 2, min_chunk), num_sms=num_sms)
    rows = np.arange(len(seqs)) + 3
    free = backend.plan_work(spec, layout_of(seqs), rows)
    padded = backend.plan_work(spec, layout_of(seqs), rows, shape)
    empty = backend.plan_work(spec, *idle(shape.num_seqs), shape)

    # The shape alone says how large the tables are.
    assert padded.kinds == empty.kinds
    assert [x.shape for x in padded.sections] == [x.shape for x in empty.sections]
    assert padded.num_part_rows == empty.num_part_rows >= free.num_part_rows
    assert all((table[:, 0] == -1).all() for table in empty.sections)
    assert len(padded.kinds) == (2 if shape.is_decode else 4)

    # What is not padding is the same work.
    tables = {(kind.window, kind.tuning): i for i, kind in enumerate(padded.kinds)}
    for i, kind in enumerate(free.kinds):
        j = tables.pop((kind.window, kind.tuning))
        assert kind.merge_tokens <= padded.kinds[j].merge_tokens
        for table, larger in zip(
            free.sections[2 * i : 2 * i + 2], padded.sections[2 * j : 2 * j + 2], strict=True
        ):
            assert np.array_equal(table, larger[: len(table)])
            assert (larger[len(table) :] == -1).all()
    for j in tables.values():
        assert (padded.sections[2 * j][:, 0] == -1).all()


def test_how_large_the_tables_of_a_graph_are() -> None:
    """Programs that find nothing to do still take time: 32 heads of a Llama on a large card."""
    backend = TritonAttention(num_sms=132)
    spec = AttentionSpec(32, 8, 128, torch.bfloat16, torch.device("cpu"), 16, frozenset({None}))
    decode = backend.plan_work(spec, *idle(256), StepShape(256, 256))
    assert [len(x) for x in decode.sections] == [256 + 32, 32]
    assert decode.num_part_rows == 2 * 32 * 4
    mixed = backend.plan_work(spec, *idle(256), StepShape(1024, 256))
    assert [len(x) for x in mixed.sections] == [288, 32, 204 + 25 + 32, 32]
