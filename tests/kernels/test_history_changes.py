from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.helper import DEVICE, ints, random, require_triton

require_triton()

from octavo.kernels import history_changes  # noqa: E402
from octavo.kernels.history_changes import (  # noqa: E402
    Changed,
    History,
    ban_words,
    penalise,
    remember,
)
from octavo.runner.changes import RowChanges, change_logits  # noqa: E402
from octavo.types import RowInit, SamplingParams  # noqa: E402

# Triton's interpreter computes in numpy, which warns of infinities that are meant.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

VOCAB_SIZE, BLOCK = 70, 4


def changed_of(lengths: list[int], prompts: list[int], rows: list[int]) -> Changed:
    nothing = ints([-1] * len(rows))
    return Changed(nothing, nothing, ints(rows), ints(lengths), ints(prompts))


def history_of(tokens: list[list[int]], rows: list[int]) -> History:
    """Blocks lie in an order of their own; what no row has is no token."""
    rng = np.random.default_rng(1)
    width = 8
    num_blocks = (max(rows) + 1) * width
    tables = rng.permutation(num_blocks).reshape(-1, width)
    slots = np.full(num_blocks * BLOCK, 2**30, np.int32)
    for row, known in zip(rows, tokens, strict=True):
        places = np.arange(len(known))
        slots[tables[row, places // BLOCK] * BLOCK + places % BLOCK] = known
    return History(ints(slots), ints(tables), BLOCK)


def test_tokens_are_remembered() -> None:
    history = ints([-5] * 12)
    input_ids = ints([40, 41, 42])
    remember(ints([7, -1, 9, -1]), ints([11, 0, 3, 4]), ints([0, 2, 0, 0]), input_ids, history)
    assert history.tolist() == [42, -5, -5, 9, 40, -5, -5, -5, -5, -5, -5, 7]


def test_many_tokens_are_remembered() -> None:
    num = 2 * history_changes.TILE + 5
    history = torch.zeros(num, dtype=torch.int32, device=DEVICE)
    values = torch.arange(num, dtype=torch.int32, device=DEVICE)
    remember(values, values.flip(0), values, values, history)
    assert torch.equal(history, values.flip(0))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_words_and_penalties(data: st.DataObject) -> None:
    """Against the changes in torch, for several rows at once and the second half of a batch."""
    small = st.integers(0, 3)
    n, first = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 2))
    rows = data.draw(st.permutations(range(4)))[:n]
    tokens = [data.draw(st.lists(small, min_size=1, max_size=30)) for _ in range(n)]
    prompts = [data.draw(st.integers(1, len(known))) for known in tokens]
    words = [
        data.draw(st.lists(st.lists(small, min_size=1, max_size=4), max_size=3)) for _ in range(n)
    ]
    penalties = [
        (
            data.draw(st.floats(0.1, 10)),
            data.draw(st.floats(-2, 2)),
            data.draw(st.floats(-2, 2)),
        )
        for _ in range(n)
    ]
    logits = random((n, VOCAB_SIZE), torch.float32, data.draw(st.integers(0, 9)), 3.0)
    changes = {}
    table = np.zeros((4, 32), np.int32)
    for i, row in enumerate(rows):
        repetition, frequency, presence = penalties[i]
        params = SamplingParams(
            repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence
        )
        init = RowInit(row, tokens[i], prompts[i], params, 0, [], words[i])
        changes[row] = RowChanges(init)
        table[row, : len(tokens[i])] = tokens[i]
    expected = logits.cpu().clone()
    lengths = [len(known) for known in tokens]
    change_logits(expected, np.array(rows), np.array(lengths), changes, table, {})

    skipped = [0] * first
    changed = changed_of(skipped + lengths, skipped + prompts, skipped + list(rows))
    history = history_of(tokens, list(rows))
    flat = [(first + i, word) for i, some in enumerate(words) for word in some]
    out = logits.clone()
    if flat:
        sizes = [len(word) for _, word in flat]
        starts = np.cumsum(sizes) - sizes
        listed = ints([[i for i, _ in flat], starts.tolist(), sizes])
        ban_words(listed, ints(np.concatenate([word for _, word in flat])), changed, history, out,
                  first)  # fmt: skip
    counts = torch.zeros((n + 1, VOCAB_SIZE), dtype=torch.int32, device=DEVICE)
    which = ints([first + i for i in range(n)])
    amounts = torch.tensor(penalties, device=DEVICE).T.contiguous()
    penalise(which, amounts, max(lengths), changed, history, counts, out, first)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)
    assert not counts.any()
    untouched = torch.ones(VOCAB_SIZE, dtype=torch.bool)
    untouched[:4] = False
    assert torch.equal(out[:, untouched], logits[:, untouched])


def test_long_histories_are_counted_by_several_programs() -> None:
    length, prompt = 2 * history_changes.TILE + 300, history_changes.TILE + 10
    known = np.random.default_rng(0).integers(0, VOCAB_SIZE - 5, length)
    width = -(-length // BLOCK)
    slots = np.zeros(width * BLOCK, np.int32)
    slots[:length] = known
    history = History(ints(slots), ints(np.arange(width)[None]), BLOCK)
    out = torch.zeros((1, VOCAB_SIZE), device=DEVICE)
    counts = torch.zeros((1, VOCAB_SIZE), dtype=torch.int32, device=DEVICE)
    amounts = torch.tensor([[2.0], [0.5], [0.25]], device=DEVICE)
    changed = changed_of([length], [prompt], [0])
    penalise(ints([0]), amounts, length, changed, history, counts, out, 0)
    times = np.bincount(known[prompt:], minlength=VOCAB_SIZE)
    expected = -0.5 * times - 0.25 * (times > 0)
    np.testing.assert_allclose(out[0].cpu().numpy(), expected, rtol=1e-6)
    assert not counts.any()
