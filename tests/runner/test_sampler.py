from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from octavo.kernels import cpu
from octavo.runner import sampler
from octavo.runner.philox import uniform
from octavo.runner.sampler import SamplerRows, sample
from octavo.types import PositionLogprobs, RowInit, SamplingParams


@pytest.fixture(params=["native", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Native code, where the library is there, and torch."""
    if request.param == "torch":
        monkeypatch.setattr(cpu, "why_not", lambda: "torch's turn")
    elif (why_not := cpu.why_not()) is not None:
        pytest.skip(why_not)
    return str(request.param)


def rows_of(
    params: list[SamplingParams], seeds: list[int] | None = None, **init: object
) -> SamplerRows:
    state = SamplerRows(len(params))
    for row, one in enumerate(params):
        values: dict[str, object] = {"token_ids": [1], "num_prompt_tokens": 1, "stop_token_ids": []}
        values |= {"seed": seeds[row] if seeds else row} | init
        state.set(row, RowInit(row=row, params=one, **values))  # type: ignore[arg-type]
    return state


def draw(
    logits: torch.Tensor, params: SamplingParams, num: int, seed: int = 0, chunk: int = 4096
) -> np.ndarray:
    """Tokens of one row at `num` positions."""
    state = rows_of([params], [seed])
    found = []
    for start in range(0, num, chunk):
        positions = np.arange(start, min(start + chunk, num))
        batch = logits.expand(len(positions), -1).clone()
        found.append(sample(batch, np.zeros_like(positions), positions, state).token_ids.numpy())
    return np.concatenate(found)


def reference_probs(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Exact probabilities after transformers' warpers, in float64 where the warpers allow."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.min_p > 0:
        warpers.append(MinPLogitsWarper(params.min_p))
    if params.top_k > 0:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    ids = torch.zeros(1, 1, dtype=torch.long)
    return torch.softmax(warpers(ids, logits[None].double())[0], dim=-1)


CASES = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.6),
    SamplingParams(temperature=1.5, min_p=0.1),
    SamplingParams(temperature=1.0, top_k=5),
    SamplingParams(temperature=1.0, top_p=0.7),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.9),
    SamplingParams(temperature=1.2, min_p=0.05, top_p=0.8),
    SamplingParams(temperature=1.3, min_p=0.02, top_k=8, top_p=0.95),
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=1.0, top_p=1e-9),
    SamplingParams(temperature=1.0, min_p=1.0),
    SamplingParams(temperature=1.0, top_k=1000, top_p=0.5),
]


def test_greedy_is_argmax() -> None:
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    logits = (logits * 4).round() / 4  # many ties
    logits[3, 5] = torch.inf
    expected = logits.argmax(dim=-1)
    state = rows_of([SamplingParams(temperature=0.0)] * 64)
    got = sample(logits, np.arange(64), np.arange(64), state)
    assert got.token_ids.dtype == torch.int64
    assert got.token_ids.tolist() == expected.tolist()
    assert got.logprobs == []


@pytest.mark.parametrize("params", CASES, ids=str)
def test_distribution(params: SamplingParams) -> None:
    """Chi-square against transformers' exact probabilities, and no token outside their set."""
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 2
    probs = reference_probs(logits, params).numpy()
    num = 40_000
    counts = np.bincount(draw(logits, params, num), minlength=50)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(probs))
    expected = probs * num
    big = expected >= 5  # the usual condition of the test; the rest is one bin
    got = np.append(counts[big], counts[~big].sum())
    expected = np.append(expected[big], expected[~big].sum())
    got, expected = got[expected > 0], expected[expected > 0]
    degrees = len(got) - 1
    # Wilson and Hilferty: a chi-square's cube root is nearly normal; 3.1 is exceeded in 1 of 1000.
    limit = (
        degrees * (1 - 2 / (9 * degrees) + 3.1 * math.sqrt(2 / (9 * degrees))) ** 3
        if degrees
        else 0
    )
    assert ((got - expected) ** 2 / expected).sum() <= limit


def test_seeds_are_independent_of_each_other() -> None:
    """The same position over many seeds has the row's distribution too."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    num = 20_000
    state = rows_of([SamplingParams()] * num, list(range(-num // 2, num // 2)))
    rows, positions = np.arange(num), np.full(num, 2**40)
    got = sample(logits.expand(num, -1).clone(), rows, positions, state).token_ids.numpy()
    expected = torch.softmax(logits.double(), -1).numpy() * num
    chi_square = ((np.bincount(got, minlength=4) - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, 1 in 1000


@pytest.mark.parametrize("vocab_size", [3, 100, 5000])
@pytest.mark.parametrize("params", CASES, ids=str)
def test_truncation_keeps_transformers_set(params: SamplingParams, vocab_size: int) -> None:
    """Every kept token of a flat distribution is reached, and no other one."""
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 0.5
    probs = reference_probs(logits, params)
    kept = set(torch.nonzero(probs).flatten().tolist())
    found = set(draw(logits, params, 4000, chunk=500).tolist())
    assert found <= kept
    if probs[probs > 0].min() * 4000 > 20:  # missing one has a chance of e**-20
        assert found == kept


def test_ties_at_the_border_of_truncation_go_by_token_id() -> None:
    logits = torch.zeros(40)
    assert set(draw(logits, SamplingParams(top_k=7), 500)) == set(range(7))
    assert set(draw(logits, SamplingParams(top_p=0.5), 1000)) == set(range(20))
    logits[30] = 1e-30  # the smallest lead counts, and so does none between 0.0 and -0.0
    logits[::2] = -logits[::2]
    assert set(draw(logits, SamplingParams(top_k=3), 500)) == {0, 1, 2}
    logits[30] = 1e-30
    assert set(draw(logits, SamplingParams(top_k=3), 500)) == {30, 0, 1}


any_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 2.0, 1e4]),
    top_k=st.sampled_from([0, -1, 1, 5, 50, 1500, 10**12]),
    top_p=st.sampled_from([1e-6, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 1e-3, 0.2, 1.0]),
    logprobs=st.sampled_from([None, None, 0, 3]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(any_params, st.integers(-(2**63), 2**63 - 1)), min_size=2, max_size=9),
    st.integers(0, 2**32 - 1),
    st.sampled_from([7, 997, 3000]),
    st.sampled_from([0.05, 1.0, 6.0]),
    st.booleans(),
)
def test_a_row_never_depends_on_its_batch(
    drawn: list[tuple[SamplingParams, int]],
    noise: int,
    vocab_size: int,
    spread: float,
    coarse: bool,
) -> None:
    params, seeds = map(list, zip(*drawn, strict=True))
    state = rows_of(params, seeds)
    num = len(params)
    logits = torch.randn(num, vocab_size, generator=torch.Generator().manual_seed(noise)) * spread
    if coarse:
        logits = logits.bfloat16().float()  # ties
    positions = np.arange(num) * 3 + 5
    together = sample(logits.clone(), np.arange(num), positions, state)
    together_logprobs = together.logprobs or [None] * num
    for i in range(num):
        alone = sample(logits[i : i + 1].clone(), np.array([i]), positions[i : i + 1], state)
        assert alone.token_ids.item() == together.token_ids[i].item()
        assert (alone.logprobs or [None])[0] == together_logprobs[i]


@pytest.mark.parametrize("params", CASES, ids=str)
def test_a_large_vocabulary_gives_the_same_alone_and_in_a_batch(params: SamplingParams) -> None:
    """Sizes at which reductions are split among threads."""
    logits = torch.randn(6, 60_000, generator=torch.Generator().manual_seed(2)) * 3
    state = rows_of([params] * 6)
    positions = np.full(6, 9)
    together = sample(logits.clone(), np.arange(6), positions, state).token_ids.tolist()
    for i in range(6):
        row = logits[i : i + 1].clone()
        assert sample(row, np.array([i]), positions[:1], state).token_ids.item() == together[i]


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1.0, 1e4, 1e300])
@pytest.mark.parametrize("extra", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_extremes(temperature: float, extra: dict[str, float]) -> None:
    params = SamplingParams(temperature=temperature, logprobs=2, **extra)  # type: ignore[arg-type]
    big = torch.finfo(torch.float32).max
    lines = {
        (4,): [-torch.inf] * 4 + [-3.0] + [-torch.inf] * 3,
        (1, 6): [0.0, torch.inf, big, 0.0, -big, -torch.inf, torch.inf, 5.0],
        (2, 3): [-torch.inf, -torch.inf, 1.0, 1.0] + [-torch.inf] * 4,
    }
    for allowed, values in lines.items():
        logits = torch.tensor(values).repeat(64, 1)
        got = sample(logits, np.zeros(64, np.int64), np.arange(64), rows_of([params]))
        assert set(got.token_ids.tolist()) == set(allowed)
        for report in got.logprobs:
            assert report is not None
            assert report.sampled.logprob == pytest.approx(-math.log(len(allowed)))
            assert not any(math.isnan(entry.logprob) for entry in report.top)


def test_low_temperature_is_greedy_and_high_is_even() -> None:
    logits = torch.randn(200, generator=torch.Generator().manual_seed(3)) * 5
    cold = draw(logits, SamplingParams(temperature=1e-6), 1000)
    assert set(cold) == {int(logits.argmax())}
    hot = np.bincount(draw(logits, SamplingParams(temperature=1e4), 40_000), minlength=200)
    assert ((hot - 200) ** 2 / 200).sum() < 267.6  # 199 degrees of freedom, 1 in 1000


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_min_tokens_masks_stop_tokens(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, min_tokens=3, logprobs=1)
    state = rows_of([params], num_prompt_tokens=10, stop_token_ids=[2, 5, 10**6])
    logits = torch.zeros(8, 8)
    logits[:, 2], logits[:, 5], logits[:, 6] = 60.0, 50.0, 40.0
    got = sample(logits, np.zeros(8, np.int64), np.arange(10, 18), state)
    assert got.token_ids.tolist() == [6, 6, 6, 2, 2, 2, 2, 2]
    report = got.logprobs[0]  # of the raw logits: the mask does not show
    assert report is not None
    assert (report.sampled.rank, report.top[0].token_id) == (3, 2)
    assert report.sampled.logprob == pytest.approx(-20.0, abs=1e-3)


def test_logprobs_are_log_softmax_of_the_raw_logits() -> None:
    logits = torch.randn(9, 500, generator=torch.Generator().manual_seed(4)).bfloat16().float()
    wanted = [None, 0, 1, 5, 20, None, 3, 7, 2]
    kinds = [{"temperature": 0.0}, {"temperature": 0.5}, {"top_k": 3, "temperature": 2.0}]
    params = [SamplingParams(logprobs=w, **kinds[i % 3]) for i, w in enumerate(wanted)]  # type: ignore[arg-type]
    got = sample(logits.clone(), np.arange(9), np.arange(9), rows_of(params))
    expected = torch.log_softmax(logits, dim=-1)
    for i, num in enumerate(wanted):
        report = got.logprobs[i]
        if num is None:
            assert report is None
            continue
        assert isinstance(report, PositionLogprobs)
        assert report.sampled.token_id == got.token_ids[i].item()
        order = sorted(range(500), key=lambda t: (-logits[i, t].item(), t))[:num]
        assert [entry.token_id for entry in report.top] == order
        for entry in [report.sampled, *report.top]:
            assert entry.logprob == pytest.approx(expected[i, entry.token_id].item(), abs=1e-5)
            assert entry.rank == 1 + (logits[i] > logits[i, entry.token_id]).sum().item()


def test_rows_are_replaced_whole() -> None:
    state = SamplerRows(2)
    full = SamplingParams(
        temperature=0.5,
        top_k=3,
        top_p=0.5,
        min_p=0.1,
        logprobs=4,
        min_tokens=2,
        max_tokens=9,
        prompt_logprobs=2,
    )
    state.set(1, RowInit(1, [1, 2], 2, full, -1, [7]))
    assert state.seed[1] == 2**64 - 1
    assert state.changes[1].added(2)[0].tolist() == [7]
    state.set(1, RowInit(1, [1], 1, SamplingParams(temperature=0.0), 5, []))
    fresh = SamplerRows(1)
    fresh.set(0, RowInit(0, [1], 1, SamplingParams(temperature=0.0), 5, []))
    for name, value in vars(state).items():
        if name in ("changes", "asking_prompts"):
            assert not value
            continue
        np.testing.assert_array_equal(value[1], vars(fresh)[name][0], err_msg=name)


@pytest.mark.parametrize("params", CASES, ids=str)
def test_tokens_are_the_inverse_of_the_distribution(
    params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a plain loop over one row, where few candidates are enough for some rows only."""
    generator = torch.Generator().manual_seed(5)
    num, vocab_size = 64, 300
    spread = torch.logspace(-1, 1, num)[torch.randperm(num, generator=generator)]
    logits = torch.randn(num, vocab_size, generator=generator) * spread[:, None]
    positions = np.arange(num) + 100
    state = rows_of([params] * num)
    u = uniform(state.seed, positions)
    expected = []
    for i in range(num):
        probs = reference_probs(logits[i], params)
        truncated = params.top_k not in (0, 1000) or params.top_p < 1
        order = torch.argsort(probs, descending=True) if truncated else torch.arange(vocab_size)
        cdf = probs[order].cumsum(0)
        expected.append(order[int((cdf <= u[i] * cdf[-1]).sum())].item())
    for num_candidates in (8, 64, 1024):
        monkeypatch.setattr(sampler, "NUM_CANDIDATES", num_candidates)
        got = sample(logits.clone(), np.arange(num), positions, state)
        assert got.token_ids.tolist() == expected


def test_the_smallest_number_never_draws_a_token_without_mass() -> None:
    cdf = torch.tensor([[0.0, 0.0, 0.25, 0.25, 1.0]], dtype=torch.float64)
    drawn = [sampler._invert(cdf, cdf[:, -1:], np.array([u])).item() for u in (0.0, 0.25, 0.9)]
    assert drawn == [2, 4, 4]
