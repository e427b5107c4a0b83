"""Launches of a step: what they read and write between them, and how large their tables are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.attention.interface import AttentionSpec, BatchLayout
from octavo.attention.planner import Plan, Planner
from octavo.attention.tunings import Kind, PromptTunings, Sharing, Tuning, Tunings
from octavo.attention.work import StepShape

SIZE = 16


@dataclass(frozen=True)
class Step:
    """Sequences of new and of old tokens; how many blocks each group of decodes shares."""

    seqs: list[tuple[int, int]]
    groups: list[tuple[list[int], int]]

    @property
    def layout(self) -> BatchLayout:
        starts = np.cumsum([0, *(new for new, _ in self.seqs)])
        context = np.array([old for _, old in self.seqs], np.int64)
        return BatchLayout(starts, context, np.empty((len(self.seqs), 0), np.int64))

    @property
    def tables(self) -> np.ndarray:
        """Row of sequence s: s + 3."""
        width = max(new + old for new, old in self.seqs) // SIZE + 1
        tables = np.arange((len(self.seqs) + 3) * width, dtype=np.int32).reshape(-1, width)
        for members, num_blocks in self.groups:
            rows = np.array(members) + 3
            tables[rows, :num_blocks] = tables[rows[0], :num_blocks]
        return tables

    @property
    def rows(self) -> np.ndarray:
        return np.arange(len(self.seqs)) + 3


@st.composite
def steps(draw: st.DrawFn) -> Step:
    lens = st.one_of(st.just(1), st.integers(2, 9), st.integers(1, 200))
    if draw(st.booleans()):
        lens = st.just(1)
    context = st.sampled_from([0, 15, 500, 4000]) | st.integers(0, 5000)
    num_alone = draw(st.integers(0, 20))
    seqs = draw(st.lists(st.tuples(lens, context), min_size=num_alone, max_size=40))
    groups = []
    for _ in range(draw(st.integers(0 if seqs else 1, 3))):
        num_blocks = draw(st.integers(1, 9) | st.integers(1, 200))
        tails = draw(st.lists(st.integers(0, 40) | context, min_size=2, max_size=20))
        groups.append((range(len(seqs), len(seqs) + len(tails)), num_blocks))
        seqs += [(1, num_blocks * SIZE + tail) for tail in tails]
    order = draw(st.permutations(range(len(seqs))))
    place = {seq: i for i, seq in enumerate(order)}
    return Step(
        [seqs[seq] for seq in order],
        [([place[seq] for seq in members], count) for members, count in groups],
    )


@st.composite
def shapes_of(draw: st.DrawFn, step: Step, shares: bool) -> StepShape:
    """Those that `step` fits into, often exactly."""
    num_seqs = len(step.seqs) + draw(st.sampled_from([0, 0, 1, 7]))
    num_tokens = sum(new for new, _ in step.seqs)
    if num_tokens == len(step.seqs) and draw(st.booleans()):
        return StepShape(num_seqs, num_seqs, shares)
    num_tokens += draw(st.sampled_from([0, 0, 3, 50]))
    return StepShape(max(num_tokens, num_seqs + 1), num_seqs, shares)


def prompt_tunings(min_mean_keys: int) -> PromptTunings:
    few, many = Tuning(32, 16, 4, 4, 1, 64), Tuning(32, 32, 4, 2, 1, 64)
    return PromptTunings(few, many, min_mean_keys)


@st.composite
def planners(draw: st.DrawFn, windows: frozenset[int | None] = frozenset({None})) -> Planner:
    num_kv_heads, group = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    min_chunk = draw(st.sampled_from([16, 100, 2000]))
    spec = AttentionSpec(
        num_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        head_dim=16,
        dtype=torch.float32,
        device=torch.device("cpu"),
        block_size=SIZE,
        windows=windows,
    )
    return Planner(
        spec,
        Tunings(
            Tuning(16, 16, 4, 2, 1, min_chunk),
            Tuning(32, 16, 4, 2, 2, min_chunk),
            draw(st.none() | st.just(Tuning(16, 16, 4, 2, 1, 16, max_chunk=32, most_per_sm=3))),
            min_many=draw(st.integers(1, 4)),
            decodes=draw(st.none() | st.just(Tuning(16, 32, 1, 3, 2, 32, max_chunk=64))),
            prompts=draw(st.none() | st.builds(prompt_tunings, st.sampled_from([0, 100, 5000]))),
        ),
        num_sms=draw(st.integers(1, 40)),
        sharing=Sharing(2, SIZE, 0),
    )


@settings(deadline=None)
@given(steps(), planners(), st.booleans())
def test_every_token_meets_each_of_its_keys_once(
    step: Step, planner: Planner, shares: bool
) -> None:
    layout, tables = step.layout, step.tables
    shared = planner.find_shared(layout, step.rows, tables) if shares else []
    assert bool(shared) == (shares and bool(step.groups))
    plan = planner.plan(layout, step.rows, None, shared)
    seq_of_token, positions = layout.seq_of_token, layout.positions
    group = planner._heads.group

    # Which keys, by the blocks that a program reads, each token has seen; parts by their row.
    seen = [np.zeros(position + 1, np.int64) for position in positions]
    written = np.zeros(len(positions), np.int64)
    parts: dict[int, int] = {}
    for i, kind in enumerate(plan.kinds):
        items, others = plan.tables[2 * i : 2 * i + 2]
        if i and plan.kinds[i - 1].merge_tokens:
            assert not parts, "a launch writes over parts that nobody has merged"
        for row, first, count, first_pos, begin, end, part, is_listed, *_ in items.tolist():
            assert is_listed == (kind.merge_tokens == 0)
            tokens = others[first : first + count] if is_listed else range(first, first + count)
            assert len(tokens) == count
            for j, token in enumerate(tokens):
                # A program shows a token all keys up to the position that it thinks it has.
                last = min(end, first_pos + j + 1)
                seq = seq_of_token[token]
                blocks = np.arange(begin, last) // SIZE
                assert (tables[row, blocks] == tables[seq + 3, blocks]).all()
                seen[token][begin:last] += 1
                if part < 0:
                    written[token] += 1
                    continue
                for k in range(group):
                    place = part + j * group + k
                    assert place not in parts
                    assert place < plan.num_part_rows
                    parts[place] = int(token)
        if not kind.merge_tokens:
            continue
        for token, count, *runs in others.tolist():
            assert 1 <= count <= kind.merge_tokens
            for j in range(count):
                written[token + j] += 1
                for row, num_parts, distance in (runs[:3], runs[3:]):
                    for k in range(num_parts):
                        for head in range(group):
                            place = row + k * distance + j * group + head
                            assert parts.pop(place) == token + j
    assert not parts
    assert (written == 1).all()
    assert all((times == 1).all() for times in seen)


@settings(deadline=None, max_examples=300)
@given(st.data(), steps(), planners(frozenset({None, 300})), st.booleans(), st.booleans())
def test_any_step_fits_into_the_tables_of_its_shape(
    data: st.DataObject, step: Step, planner: Planner, may_share: bool, shares: bool
) -> None:
    shape = data.draw(shapes_of(step, may_share))
    shared = []
    if may_share and shares:
        shared = planner.find_shared(step.layout, step.rows, step.tables)
    free = planner.plan(step.layout, step.rows, None, shared)
    padded = planner.plan(step.layout, step.rows, shape, shared)
    empty = plan_of_nothing(planner, shape)

    # The shape alone says how large the tables are.
    assert padded.kinds == empty.kinds
    assert [x.shape for x in padded.tables] == [x.shape for x in empty.tables]
    assert padded.num_part_rows == empty.num_part_rows >= free.num_part_rows
    assert all((table == -1).all() for table in empty.tables)
    assert len(padded.kinds) == (2 if shape.is_decode else 4) + shape.shares

    # What is not padding is the same work, unless it is divided by a rule of its own.
    if planner._tunings.serve_apart(shape):
        return
    tables = {kind: padded.tables[2 * i : 2 * i + 2] for i, kind in enumerate(padded.kinds)}
    for i, kind in enumerate(free.kinds):
        padded_kind = in_a_graph(planner, kind)
        pairs = zip(free.tables[2 * i : 2 * i + 2], tables.pop(padded_kind), strict=True)
        for table, larger in pairs:
            assert np.array_equal(table, larger[: len(table)])
            assert (larger[len(table) :] == -1).all()
    assert all((table == -1).all() for pair in tables.values() for table in pair)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=30),
    st.integers(0, 5),
    st.none() | st.integers(1, 3000),
    st.integers(1, 60),
    st.integers(1, 4),
    st.booleans(),
)
def test_many_decodes_are_divided_and_say_themselves_what_is_to_be_merged(
    contexts: list[int],
    num_idle: int,
    window: int | None,
    num_sms: int,
    most_per_sm: int,
    is_decodes: bool,
) -> None:
    group, longest = 4, 128
    spec = AttentionSpec(8, 2, 16, torch.float32, torch.device("cpu"), SIZE, frozenset({window}))
    short = Tuning(16, 16, 4, 2, 1, 48)
    many = replace(short, max_chunk=longest, most_per_sm=most_per_sm)
    tunings = Tunings(short, short, many, min_many=1)
    if is_decodes:
        tunings = Tunings(short, short, decodes=many)
    planner = Planner(spec, tunings, num_sms, Sharing())
    step = Step([(1, context) for context in contexts] + [(1, 0)] * num_idle, [])
    rows = np.where(np.arange(len(step.seqs)) < len(contexts), step.rows, -1)
    size = len(step.seqs) + 2
    plan = planner.plan(step.layout, rows, StepShape(size, size), [])

    (kind,), (items, merges) = plan.kinds, plan.tables
    assert kind.merges_itself
    assert kind.is_decodes == is_decodes
    assert len(merges) == 0
    num_items = np.count_nonzero(items[:, 0] >= 0)
    assert (items[:num_items, 10] == num_items).all()
    pieces: dict[int, list[list[int]]] = {}
    for item in items[items[:, 0] >= 0].tolist():
        assert item[2] == 1
        pieces.setdefault(item[1], []).append(item)
    assert set(pieces) == set(range(len(contexts)))
    most_programs = max(most_per_sm * num_sms // 2, 1)
    num_keys = sum(min(context + 1, window or context + 1) for context in contexts)
    allowed = max(longest, -(-num_keys // most_programs) + 15)
    taken: set[int] = set()
    for token, found in pieces.items():
        first = 0 if window is None else max(contexts[token] + 1 - window, 0)
        ranges = sorted(item[4:6] for item in found)
        assert [first, *(end for _, end in ranges)] == [
            *(b for b, _ in ranges),
            contexts[token] + 1,
        ]
        assert all(0 < end - begin <= allowed for begin, end in ranges)
        if len(found) == 1:
            assert found[0][6] == -1
            continue
        places = {item[6] + head for item in found for head in range(group)}
        assert len(places) == len(found) * group  # no part lies in another
        assert not places & taken
        taken |= places
        assert {tuple(item[8:10]) for item in found} == {(min(places), len(found))}
        assert max(places) == min(places) + len(places) - 1 < plan.num_part_rows


def in_a_graph(planner: Planner, kind: Kind) -> Kind:
    prompts = planner._tunings.prompts
    return (
        kind if prompts is None or not kind.is_prompts else replace(kind, tuning=prompts.few_keys)
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8), st.integers(0, 2000))
def test_long_prompts_get_tiles_of_more_keys(lens: list[int], min_mean_keys: int) -> None:
    spec = AttentionSpec(8, 2, 64, torch.float16, torch.device("cpu"), SIZE, frozenset({None}))
    short, prompts = Tuning(16, 16, 4, 2, 1, 64), prompt_tunings(min_mean_keys)
    planner = Planner(spec, Tunings(short, short, prompts=prompts), 4, Sharing())
    step = Step([(n + 8, 0) for n in lens], [])
    (kind,) = planner.plan(step.layout, step.rows, None, []).kinds
    ends = [np.minimum(np.arange(8, n + 16, 8), n + 8) for n in lens]  # tiles have 8 tokens
    mean = np.concatenate(ends).mean()
    assert kind.is_prompts
    assert kind.tuning == (prompts.many_keys if mean >= min_mean_keys else prompts.few_keys)


def plan_of_nothing(planner: Planner, shape: StepShape) -> Plan:
    idle = Step([(1, 0)] * shape.num_seqs, [])
    return planner.plan(idle.layout, np.full(shape.num_seqs, -1), shape, [])


def llama(num_sms: int = 132) -> Planner:
    spec = AttentionSpec(32, 8, 128, torch.bfloat16, torch.device("cpu"), SIZE, frozenset({None}))
    short, long = Tuning(16, 64, 2, 2, 2, 128), Tuning(128, 32, 4, 2, 2, 256)
    many = replace(short, max_chunk=512, most_per_sm=4)
    return Planner(spec, Tunings(short, long, many), num_sms, Sharing())


def test_how_large_the_tables_of_a_graph_are() -> None:
    """Programs that find nothing to do still take time."""

    def sizes(shape: StepShape) -> list[int]:
        return [len(table) for table in plan_of_nothing(llama(), shape).tables]

    assert sizes(StepShape(16, 16)) == [16 + 32, 16]
    assert sizes(StepShape(256, 256)) == [256 + 65, 0]
    assert sizes(StepShape(1024, 256)) == [256 + 32, 32 * 4, 204 + 25 + 32, 32]
    assert sizes(StepShape(256, 256, shares=True)) == [64 + 6 + 32, 256, 256 + 32, 256]


def test_what_is_spared_by_sharing() -> None:
    """64 decodes behind 2048 tokens read what is their own, and the rest once for each tile."""
    step = Step([(1, 2048 + 64 + i) for i in range(64)], [(list(range(64)), 128)])
    planner = llama()
    shared = planner.find_shared(step.layout, step.rows, step.tables)
    plan = planner.plan(step.layout, step.rows, StepShape(64, 64, shares=True), shared)

    def num_keys(table: np.ndarray) -> int:
        return int((table[:, 5] - table[:, 4]).sum())

    assert num_keys(plan.tables[0]) == 2 * 2048
    assert num_keys(plan.tables[2]) == sum(64 + i + 1 for i in range(64))
    # In all: 16 programs for each KV head, and 8 parts for each token.
    assert (plan.tables[0][:, 0] >= 0).sum() == 16
    assert (plan.tables[3][:, [3, 6]] == [1, 8]).all()


def test_what_does_not_pay_is_not_shared() -> None:
    def finds(num_seqs: int, num_blocks: int) -> bool:
        members = list(range(num_seqs))
        step = Step([(1, num_blocks * SIZE + 40)] * num_seqs, [(members, num_blocks)])
        return bool(llama().find_shared(step.layout, step.rows, step.tables))

    assert finds(64, 16)
    assert not finds(64, 15)  # too short
    assert not finds(4, 16)  # 3 MiB in each layer
    assert finds(4, 140)
    assert not finds(3, 1000)
