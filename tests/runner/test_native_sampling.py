"""Sampling by native code and by torch: the same tokens and reports, but for float32's rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.kernels import cpu
from octavo.runner.philox import uniform
from octavo.runner.prompt_logprobs import PromptTokens, report_prompt
from octavo.runner.sampler import Sampled, SamplerRows, sample
from octavo.types import RowInit, SamplingParams
from tests.kernels.cpu.sampling_reference import Params, acceptable

pytestmark = pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not()))

KINDS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.5, min_p=0.1),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.3, top_p=0.99),
    SamplingParams(top_k=50),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.9),
    SamplingParams(temperature=1.3, top_k=1200, min_p=0.02),
    SamplingParams(temperature=1.2, top_p=0.8, min_p=0.01),
]


def state_of(params: list[SamplingParams]) -> SamplerRows:
    state = SamplerRows(len(params))
    for row, one in enumerate(params):
        state.set(row, RowInit(row, [1], 1, one, 977 * row, [2]))
    return state


def both_ways(
    logits: torch.Tensor, state: SamplerRows, positions: np.ndarray, **more: object
) -> tuple[Sampled, Sampled]:
    rows = np.arange(len(logits))
    native = sample(logits.clone(), rows, positions, state, **more)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "why_not", lambda: "torch's turn")
        torchs = sample(logits.clone(), rows, positions, state, **more)  # type: ignore[arg-type]
    return native, torchs


def assert_near(native: Sampled, torchs: Sampled) -> None:
    """Reports agree where tokens do, and their alternatives always."""
    same = (native.token_ids == torchs.token_ids).tolist()
    assert len(native.logprobs) == len(torchs.logprobs) > 0
    for is_same, own, other in zip(same, native.logprobs, torchs.logprobs, strict=True):
        assert (own is None) == (other is None)
        if own is None or other is None:
            continue
        own_all, other_all = [*own.top], [*other.top]
        if is_same:
            own_all, other_all = [own.sampled, *own_all], [other.sampled, *other_all]
        for mine, its in zip(own_all, other_all, strict=True):
            assert (mine.token_id, mine.rank) == (its.token_id, its.rank)
            assert mine.logprob == pytest.approx(its.logprob, abs=2e-5, rel=1e-6)


@pytest.mark.parametrize("params", KINDS, ids=str)
def test_thousands_of_rows(params: SamplingParams) -> None:
    """Where tokens differ, both are right at a bound."""
    num, vocab = 400, 3000
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(num, vocab, generator=generator)
    logits *= torch.logspace(-1, 1.2, num)[:, None]
    state, positions = state_of([params] * num), np.arange(num) * 3
    native, torchs = both_ways(logits, state, positions)
    different = torch.nonzero(native.token_ids != torchs.token_ids).flatten().tolist()
    assert len(different) <= 3
    u = uniform(state.seed, positions)
    for row in different:
        kind = Params(params.temperature, params.top_k, params.top_p, params.min_p)
        right = acceptable(logits[row].numpy(), kind, u[row])
        assert {native.token_ids[row].item(), torchs.token_ids[row].item()} <= right


def test_infinite_logits_and_nans_are_alike() -> None:
    generator = torch.Generator().manual_seed(9)
    kinds = [SamplingParams(temperature=t, top_k=k, logprobs=7)
             for t in (0.0, 1.0) for k in (0, 3, 30)]  # fmt: skip
    for strange in (torch.nan, -torch.nan, torch.inf, -torch.inf):
        logits = torch.randn(18, 200, generator=generator)
        logits[:6, 7], logits[6:12, 150:153] = strange, strange
        logits[12:] = strange
        assert_near(*both_ways(logits, state_of(kinds * 3), np.arange(18)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_reports_are_of_what_the_model_computed(dtype: torch.dtype) -> None:
    """Also where a bias, a mask and forbidden tokens change what is chosen from."""
    generator = torch.Generator().manual_seed(10)
    logits = (torch.randn(8, 900, generator=generator) * 3).to(dtype)
    nums = (None, 0, 3, 20, 5, None, 1, 2)
    params = [SamplingParams(logprobs=num, temperature=i % 2) for i, num in enumerate(nums)]
    positions = np.arange(8)
    assert_near(*both_ways(logits, state_of(params), positions))
    params[2] = SamplingParams(logprobs=4, logit_bias={5: 30.0})
    params[5] = SamplingParams(min_tokens=9)
    words = np.zeros(29, np.int32)
    words[3] = 1 << 9
    native, torchs = both_ways(logits, state_of(params), positions, masks={4: words})
    assert native.token_ids[[2, 4]].tolist() == [5, 3 * 32 + 9]
    assert_near(native, torchs)


class OutputLayer:
    """Logits that are there already."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.shape = type("Shape", (), {"vocab_size": 700})

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prompts_are_reported_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(9, 700, generator=torch.Generator().manual_seed(11)) * 4
    nums = np.array([0, 3, 20] * 3, np.int32)
    tokens = PromptTokens(np.arange(9), np.arange(9) * 70, nums, np.arange(9) // 4)
    model = OutputLayer(dtype)
    native = report_prompt(model, hidden, tokens).entries(3)  # type: ignore[arg-type]
    monkeypatch.setattr(cpu, "why_not", lambda: "torch's turn")
    torchs = report_prompt(model, hidden, tokens).entries(3)  # type: ignore[arg-type]
    for own, other in zip(native, torchs, strict=True):
        assert own is not None
        assert other is not None
        for mine, its in zip(own, other, strict=True):
            for a, b in zip((mine.sampled, *mine.top), (its.sampled, *its.top), strict=True):
                assert (a.token_id, a.rank) == (b.token_id, b.rank)
                assert a.logprob == pytest.approx(b.logprob, abs=2e-5)
