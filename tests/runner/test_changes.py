"""Changes of logits against transformers' processors, and against generations by transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from octavo.config import EngineConfig
from octavo.runner.changes import RowChanges, change_logits
from octavo.runner.masks import mask_of
from octavo.runner.runner import ModelRunner
from octavo.runner.sampler import SamplerRows, sample
from octavo.types import SamplingParams
from octavo.weights.open import open_checkpoint
from tests.runner.driver import Planner, make_init

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo.runner.masks import Words
    from octavo.types import RowInit
    from tests.conftest import TinyLlama

VOCAB_SIZE = 30
TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=12)


def make_logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VOCAB_SIZE, generator=generator) * 3


def changed(
    logits: torch.Tensor, init: RowInit, masks: Mapping[int, Words] | None = None
) -> torch.Tensor:
    """One row after its changes."""
    rows, positions = np.array([init.row]), np.array([len(init.token_ids)])
    tokens = np.full((init.row + 1, 40), 9999, np.int32)
    tokens[init.row, : len(init.token_ids)] = init.token_ids
    result = logits.clone()[None]
    change_logits(result, rows, positions, {init.row: RowChanges(init)}, tokens, masks or {})
    return result[0]


def init_of(
    prompt: Sequence[int], output: Sequence[int], params: SamplingParams, **kwargs: Any
) -> RowInit:
    return make_init(2, [*prompt, *output], params, num_prompt_tokens=len(prompt), **kwargs)


@settings(deadline=None)
@given(TOKENS.filter(bool), TOKENS, st.floats(0.05, 10), st.integers(0, 99))
def test_repetition(prompt: list[int], output: list[int], penalty: float, seed: int) -> None:
    logits = make_logits(seed)
    got = changed(logits, init_of(prompt, output, SamplingParams(repetition_penalty=penalty)))
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([prompt + output]), logits[None].clone())[0]
    torch.testing.assert_close(got, expected)


@settings(deadline=None)
@given(TOKENS.filter(bool), TOKENS, st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 99))
def test_frequency_and_presence_count_the_output_alone(
    prompt: list[int], output: list[int], frequency: float, presence: float, seed: int
) -> None:
    logits = make_logits(seed)
    params = SamplingParams(frequency_penalty=frequency, presence_penalty=presence)
    got = changed(logits, init_of(prompt, output, params))
    for token in range(VOCAB_SIZE):
        times = output.count(token)
        expected = logits[token].item() - frequency * times - presence * (times > 0)
        assert got[token].item() == pytest.approx(expected, abs=1e-5)
        if token not in output:
            assert got[token] == logits[token]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    TOKENS,
)
def test_bad_words(words: list[list[int]], output: list[int], prompt: list[int]) -> None:
    logits = make_logits(0)
    got = changed(logits, init_of(prompt, output, SamplingParams(), bad_words=words))
    processor = NoBadWordsLogitsProcessor(words, eos_token_id=None)
    expected = processor(torch.tensor([output]), logits[None].clone())[0]
    assert torch.equal(got, expected)


def test_words_begin_in_the_output() -> None:
    """As in vLLM; what the prompt ends with forbids nothing."""
    logits = make_logits(0)
    words = [[4, 5], [6]]
    got = changed(logits, init_of([3, 4], [], SamplingParams(), bad_words=words))
    assert np.flatnonzero(got.isinf()).tolist() == [6]
    got = changed(logits, init_of([3], [4], SamplingParams(), bad_words=words))
    assert np.flatnonzero(got.isinf()).tolist() == [5, 6]


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, VOCAB_SIZE + 5), st.floats(-100, 100), max_size=8))
def test_bias(bias: dict[int, float]) -> None:
    logits = make_logits(0)
    got = changed(logits, init_of([1], [2], SamplingParams(logit_bias=bias)))
    known = {(token,): value for token, value in bias.items() if token < VOCAB_SIZE}
    expected = logits
    if known:
        processor = SequenceBiasLogitsProcessor(known)
        expected = processor(torch.tensor([[1, 2]]), logits[None].clone())[0]
    torch.testing.assert_close(got, expected)


def test_order() -> None:
    """What is forbidden stays so; the bias is penalised with the logit that it belongs to."""
    logits = torch.full((VOCAB_SIZE,), -1.0)
    logits[3] = torch.inf
    params = SamplingParams(
        allowed_token_ids=[2, 3, 4, 5, 6, VOCAB_SIZE], logit_bias={2: 100.0, 4: 3.0, 8: 100.0},
        repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25, min_tokens=4,
    )  # fmt: skip
    init = init_of([4, 9], [4, 2, 4], params, bad_words=[[2, 4, 5]], stop_token_ids=[2, 3, 77])
    mask = {0: mask_of(np.array([0, 2, 3, 4, 5, 8]), VOCAB_SIZE)}
    got = changed(logits, init, mask)
    expected = torch.full((VOCAB_SIZE,), -torch.inf)
    expected[4] = (-1.0 + 3.0) / 2.0 - 2 * 0.5 - 0.25
    assert torch.equal(got, expected)


@settings(deadline=None)
@given(st.lists(TOKENS, max_size=6), st.integers(0, 15))
def test_counts_are_kept_up_to_date(parts: list[list[int]], num_prompt_tokens: int) -> None:
    tokens = np.array([token for part in parts for token in part], np.int32)
    params = SamplingParams(presence_penalty=1.0)
    changes = RowChanges(make_init(0, [1] * num_prompt_tokens, params))
    end = 0
    for part in parts:
        end += len(part)
        if end < num_prompt_tokens:
            continue
        ids, counts = changes.counts(tokens[:end])
        assert sorted(ids.tolist()) == sorted(set(tokens[:end].tolist()))
        output = tokens[num_prompt_tokens:end].tolist()
        assert counts.tolist() == [output.count(token) for token in ids.tolist()]


def test_rows_are_reused_clean() -> None:
    """A row's next owner gets what it would get in a table of its own."""
    full = SamplingParams(
        temperature=0.0, repetition_penalty=5.0, presence_penalty=2.0, frequency_penalty=2.0,
        logit_bias={1: 50.0}, allowed_token_ids=[1, 2, 3], min_tokens=5,
    )  # fmt: skip
    plain = SamplingParams(temperature=0.0)
    logits = make_logits(4).repeat(2, 1)
    tokens = np.ones((2, 8), np.int32)
    state = SamplerRows(2)
    for row in range(2):
        state.set(row, make_init(row, [1, 1], full, bad_words=[[2]], stop_token_ids=[1]))
    rows, positions = np.arange(2), np.array([2, 2])
    first = sample(logits.clone(), rows, positions, state, tokens)
    assert first.token_ids.tolist() == [3, 3]
    state.set(0, make_init(0, [1, 1], plain))
    state.set(1, make_init(1, [1, 1], SamplingParams(temperature=0.0, presence_penalty=1.0)))
    assert state.is_plain.tolist() == [True, False]
    assert list(state.changes) == [1]
    again = sample(logits.clone(), rows, positions, state, tokens)
    assert again.token_ids.tolist() == [logits[0].argmax(), logits[0].argmax()]


def test_log_probabilities_are_of_the_raw_logits() -> None:
    params = SamplingParams(
        temperature=0.0, logprobs=3, allowed_token_ids=[5], logit_bias={5: -9.0},
        repetition_penalty=3.0,
    )  # fmt: skip
    state = SamplerRows(1)
    state.set(0, make_init(0, [5, 6], params))
    logits = make_logits(7)[None]
    tokens = np.array([[5, 6, 0]], np.int32)
    got = sample(logits.clone(), np.array([0]), np.array([2]), state, tokens)
    entry = got.logprobs[0]
    assert entry is not None
    raw = torch.log_softmax(logits[0], dim=-1)
    assert entry.sampled.token_id == 5
    assert entry.sampled.logprob == pytest.approx(raw[5].item(), abs=1e-5)
    assert [one.token_id for one in entry.top] == raw.topk(3).indices.tolist()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_penalised_rows_cost_the_others_nothing(data: st.DataObject) -> None:
    """Rows without changes keep their logits bit by bit."""
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    tokens = np.array(data.draw(st.lists(st.lists(st.integers(0, 29), min_size=6, max_size=6),
                                         min_size=3, max_size=3)), np.int32)  # fmt: skip
    init = make_init(1, tokens[1, :4].tolist(), SamplingParams(frequency_penalty=1.0),
                     num_prompt_tokens=2)  # fmt: skip
    after = logits.clone()
    change_logits(after, np.arange(3), np.full(3, 4), {1: RowChanges(init)}, tokens, {})
    assert torch.equal(after[[0, 2]], logits[[0, 2]])
    assert not torch.equal(after[1], logits[1])


GENERATIONS: list[tuple[SamplingParams, list[list[int]], dict[str, Any]]] = [
    (SamplingParams(temperature=0.0, repetition_penalty=1.3), [], {"repetition_penalty": 1.3}),
    (SamplingParams(temperature=0.0, repetition_penalty=0.8), [], {"repetition_penalty": 0.8}),
    (
        SamplingParams(temperature=0.0, repetition_penalty=1.2, logit_bias={3: 2.0, 77: -9.0}),
        [[300], [301, 302]],
        {
            "repetition_penalty": 1.2,
            "sequence_bias": [[[3], 2.0], [[77], -9.0]],
            "bad_words_ids": [[300], [301, 302]],
        },
    ),
]


@pytest.fixture(scope="module")
def runner(tiny_llama: TinyLlama) -> ModelRunner:
    path = tiny_llama()
    config = EngineConfig(
        model=str(path), device="cpu", kv_cache_memory=2**21, max_num_seqs=4,
        max_num_batched_tokens=64, block_size=4, num_threads=1,
    )  # fmt: skip
    checkpoint = open_checkpoint(path)
    made = ModelRunner(config, checkpoint)
    checkpoint.close()
    return made


@pytest.mark.parametrize(("params", "bad_words", "options"), GENERATIONS)
def test_generations_are_those_of_transformers(
    runner: ModelRunner, tiny_llama: TinyLlama, params: SamplingParams,
    bad_words: list[list[int]], options: dict[str, Any],
) -> None:  # fmt: skip
    """Token for token, beside rows of other parameters, and through a preemption."""
    prompt = np.random.default_rng(5).integers(3, 290, 9).tolist()
    num = 40
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(), dtype=torch.float32)
    expected = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
        max_new_tokens=num, eos_token_id=None, pad_token_id=0,
        **({"renormalize_logits": False} | options),
    )[0, len(prompt) :].tolist()  # fmt: skip
    planner = Planner(block_size=4, blocks_each=16)
    init = make_init(1, prompt, params, bad_words=bad_words)
    other = make_init(0, [5, 6], SamplingParams(temperature=1.0, presence_penalty=1.0))
    plans = [planner.plan({1: 5, 0: 2}, [init, other]), planner.plan({1: 4, 0: 1})]
    plans += [planner.plan({0: 1, 1: 1}) for _ in range(14)]
    got: list[int] = []
    for plan in plans:
        tokens = dict(zip(
            [row for row, does in zip(plan.rows, plan.samples, strict=True) if does],
            runner.execute(plan).token_ids, strict=True,
        ))  # fmt: skip
        got += [tokens[1]] if 1 in tokens else []
    # Preempted: what is known begins anew, in another row.
    again = make_init(3, prompt + got, params, num_prompt_tokens=len(prompt), bad_words=bad_words)
    got += runner.execute(planner.plan({3: len(prompt) + len(got)}, [again])).token_ids
    while len(got) < num:
        got += runner.execute(planner.plan({3: 1})).token_ids
    assert got == expected
