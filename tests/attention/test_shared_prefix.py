"""Decodes that share blocks: found, and computed as if each had read them alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.attention.interface import AttentionSpec, BatchLayout, LayerAttention
from octavo.attention.shared_prefix import PrefixFinder, find_shared_prefixes, join
from octavo.attention.torch_cpu import TorchAttention
from tests.attention.reference import attend

SIZE = 16


def layout_of(tables: list[list[int]], context: list[int], new: list[int]) -> BatchLayout:
    widest = max(map(len, tables))
    padded = np.array([table + [2**30] * (widest - len(table)) for table in tables], np.int64)
    starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int64)
    return BatchLayout(starts, np.array(context, np.int64), padded)


def test_what_is_shared() -> None:
    prefix, other = [7, 3, 9, 1, 4], [20, 21, 22, 23]
    tables = [[*prefix, 30 + i] for i in range(5)] + [[*other, 40 + i] for i in range(4)]
    tables += [[*prefix, 50, 51], [60]]
    # The tenth is a chunk, the eleventh has no full block; the first five write into block 5.
    context = [80, 81, 95, 80, 88, *[64] * 4, 90, 5]
    found = find_shared_prefixes(layout_of(tables, context, [1] * 9 + [6, 1]), SIZE)
    assert [(p.seqs.tolist(), p.block_ids.tolist()) for p in found] == [
        ([0, 1, 2, 3, 4], prefix),
        ([5, 6, 7, 8], other),
    ]


def test_what_is_too_little() -> None:
    short = [[7, 3, 9, 30 + i] for i in range(8)]
    assert find_shared_prefixes(layout_of(short, [50] * 8, [1] * 8), SIZE) == []
    few = [[1, 2, 3, 4, 5, 30 + i] for i in range(3)]
    assert find_shared_prefixes(layout_of(few, [80] * 3, [1] * 3), SIZE) == []


def test_the_block_that_is_written_is_never_shared() -> None:
    # Equal tables cannot be: but a full context ends at a block's border, and the next one is new.
    tables = [[1, 2, 3, 4, 5, 6, 30 + i] for i in range(4)]
    (found,) = find_shared_prefixes(layout_of(tables, [70, 96, 80, 96], [1] * 4), SIZE)
    assert found.block_ids.tolist() == [1, 2, 3, 4]


def test_a_little_with_many_or_much_with_few() -> None:
    """All begin with 4 blocks; then there are two kinds, or one that goes on and seven that end."""
    head = [1, 2, 3, 4]
    longer = [*head, *range(10, 70)], [*head, *range(110, 170)]
    tables = [[*longer[i % 2], 1000 + i] for i in range(8)]
    found = find_shared_prefixes(layout_of(tables, [64 * SIZE + 3] * 8, [1] * 8), SIZE)
    assert [p.seqs.tolist() for p in found] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert [p.block_ids.tolist() for p in found] == list(longer)

    tables = [[*head, 1000 + i, 2000 + i] for i in range(7)] + [[*longer[0], 3000]]
    context = [4 * SIZE + 3] * 7 + [64 * SIZE + 3]
    (found_one,) = find_shared_prefixes(layout_of(tables, context, [1] * 8), SIZE)
    assert found_one.seqs.tolist() == list(range(8))
    assert found_one.block_ids.tolist() == head


def test_what_was_found_is_kept_while_it_holds() -> None:
    finder = PrefixFinder(SIZE, 2, 2 * SIZE)
    tables = np.arange(80, dtype=np.int32).reshape(8, 10)
    tables[2:5, :3] = tables[2, :3]
    rows = np.array([4, 0, 3, 2])

    def step(context: list[int], rows: np.ndarray = rows) -> list[tuple[list[int], list[int]]]:
        layout = layout_of([[]] * len(context), context, [1] * len(context))
        found = finder.find(layout, rows, tables)
        anew = find_shared_prefixes(layout, SIZE, rows, tables, 2, 2 * SIZE)
        describe = [(p.seqs.tolist(), p.block_ids.tolist()) for p in found]
        assert describe == [(p.seqs.tolist(), p.block_ids.tolist()) for p in anew]
        kept.append(found)
        return describe

    kept: list[object] = []
    assert step([50, 70, 48, 90]) == [([0, 2, 3], [20, 21, 22])]
    assert step([51, 71, 49, 91])
    assert kept[1] is kept[0]
    # Row 3 is another request now, which shares less.
    tables[3, 2:] += 1000
    assert step([52, 72, 50, 92]) == [([0, 2, 3], [20, 21])]
    # It begins anew, and is behind the others.
    assert step([53, 73, 20, 93]) == [([0, 3], [20, 21, 22])]
    assert step([53, 73, 93], rows[[0, 1, 3]]) == [([0, 2], [20, 21, 22])]
    assert step([54, 74, 94], np.array([4, 0, -1])) == []
    assert step([55, 75, 95], np.array([4, 0, 2])) == [([0, 2], [20, 21, 22])]


@settings(deadline=None, max_examples=40)
@given(
    num_shared=st.integers(4, 9),
    tails=st.lists(st.integers(0, 40), min_size=4, max_size=9),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (9, 3)]),
    chunk=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_against_float64(
    num_shared: int,
    tails: list[int],
    heads: tuple[int, int],
    chunk: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    dim, (num_heads, num_kv) = 16, heads
    generator = torch.Generator().manual_seed(seed)
    context = [num_shared * SIZE + tail for tail in tails] + ([20] if chunk else [])
    new = [1] * len(tails) + ([chunk] if chunk else [])
    tables, free = [], num_shared
    for seq, (old, more) in enumerate(zip(context, new, strict=True)):
        shared = list(range(num_shared)) if seq < len(tails) else []
        count = -(-(old + more) // SIZE) - len(shared)
        tables.append(shared + list(range(free, free + count)))
        free += count
    layout = layout_of(tables, context, new)
    assert len(find_shared_prefixes(layout, SIZE)) == 1

    backend = TorchAttention()
    spec = AttentionSpec(
        num_heads, num_kv, dim, dtype, torch.device("cpu"), SIZE, frozenset({None, 30})
    )
    cache = backend.allocate(spec, free)
    cache.copy_(torch.randn(cache.shape, generator=generator))
    total = sum(new)
    q, k, v = (
        torch.randn(total, n, dim, generator=generator).to(dtype)
        for n in (num_heads, num_kv, num_kv)
    )
    meta = backend.plan(spec, layout)
    for window in (None, 30):
        out = backend.forward(LayerAttention(0.3, window), q, k, v, cache, meta)
        for seq, (old, more) in enumerate(zip(context, new, strict=True)):
            start = int(layout.query_starts[seq])
            rows = cache[:, tables[seq]].reshape(2, -1, num_kv, dim)[:, : old + more]
            expected = attend(q[start : start + more], rows[0], rows[1], 0.3, window, None)
            error = (out[start : start + more].double() - expected).abs().max()
            assert error < (1e-5 if dtype == torch.float32 else 3e-2)


def test_join_is_one_softmax() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 3, 20, generator=generator) * 30
    values = torch.randn(5, 3, 20, 4, generator=generator)
    whole = torch.einsum("nhs,nhsd->nhd", logits.softmax(-1), values)
    parts = []
    for part in (slice(0, 7), slice(7, 20)):
        weights = logits[..., part].softmax(-1)
        out = torch.einsum("nhs,nhsd->nhd", weights, values[:, :, part])
        parts += [out, logits[..., part].logsumexp(-1)]
    assert torch.allclose(join(*parts), whole, atol=1e-5)
