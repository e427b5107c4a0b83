"""Rows that ask for more, by the kernels, against the sampler in torch."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from octavo.runner.changed_logits import ChangedLogits, StepInputs
from octavo.runner.rows import RowTable
from octavo.runner.sampler import SamplerRows, sample
from octavo.runner.staging import Staging
from octavo.types import RowInit, SamplingParams

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported

VOCAB_SIZE = 60
NUM_PROMPT_TOKENS = 10
PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, min_tokens=3, logprobs=2),
    SamplingParams(temperature=0.0, top_p=0.5, logprobs=0),
    SamplingParams(temperature=0.9),
    SamplingParams(temperature=0.9, top_p=0.8, logprobs=20),
    SamplingParams(temperature=1.0, top_k=3, min_tokens=3),
    SamplingParams(temperature=1.0, min_tokens=1),
    SamplingParams(temperature=0.7, min_p=0.3, min_tokens=3, logprobs=5),
    SamplingParams(temperature=0.7, top_k=5, top_p=0.9),
]
STOP_TOKEN_IDS = [4, 7, 10**6]


@pytest.fixture(autouse=True)
def has_triton() -> None:
    # Older interpreters fail under numpy 2.4, which no longer makes numbers of arrays.
    pytest.importorskip("triton", minversion="3.8", reason="triton >= 3.8 is not installed")
    if HAS_GPU:
        pytest.skip("the kernels are compiled in this process")


def state_of(params: list[SamplingParams]) -> SamplerRows:
    """Row i has the parameters of the i-th from the end."""
    state = SamplerRows(len(params))
    for row, one in enumerate(params[::-1]):
        state.set(row, RowInit(row, [1], NUM_PROMPT_TOKENS, one, 100 + row, STOP_TOKEN_IDS))
    return state


def changer_of(num_rows: int, staging: Staging) -> ChangedLogits:
    table = RowTable(num_rows, 32, 4)
    table.num_tokens[:] = NUM_PROMPT_TOKENS
    return ChangedLogits(table, torch.from_numpy(table.block_tables), 64, 4, staging)


def make_logits(num_rows: int, padding: int = 0) -> torch.Tensor:
    """The forbidden tokens are the likeliest."""
    generator = torch.Generator().manual_seed(num_rows)
    logits = torch.randn(num_rows + padding, VOCAB_SIZE, generator=generator) * 2
    logits[:, 7], logits[:, 4] = 12.0, 11.5
    return logits.bfloat16()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("num_generated", [0, 2, 5])
def test_against_the_sampler_in_torch(num_generated: int) -> None:
    from octavo.kernels.sampling import sample_plain
    from octavo.kernels.uniform import draw_uniform
    from octavo.runner.special import choose_special

    n = len(PARAMS)
    state = state_of(PARAMS)
    rows = np.arange(n)[::-1].copy()
    positions = np.full(n, NUM_PROMPT_TOKENS + num_generated)
    logits = make_logits(n, padding=3)
    before = logits.clone()
    token_ids = torch.full((n + 3,), -5, dtype=torch.int32)
    last_token = torch.full((n,), -6, dtype=torch.int32)
    temperature = torch.from_numpy(state.temperature[rows])
    uniform = torch.empty_like(temperature)
    seeds = torch.from_numpy(np.ascontiguousarray(state.seed_words[:, rows]))
    draw_uniform(seeds, torch.from_numpy(positions.astype(np.int32)), uniform)
    device_rows = torch.from_numpy(rows.astype(np.int32))
    sample_plain(logits[:n], temperature, uniform, device_rows, last_token, token_ids)
    at_first = token_ids.tolist()
    staging = Staging(torch.device("cpu"))
    reports = choose_special(
        logits, token_ids, last_token, rows, positions, state, staging, changer_of(n, staging),
        StepInputs(token_ids, rows), {},
    )  # fmt: skip
    assert torch.equal(logits, before)
    assert token_ids[n:].tolist() == [-5] * 3
    expected = sample(logits[:n].clone(), rows, positions, state)

    for i, params in enumerate(PARAMS):
        token = int(token_ids[i])
        is_truncated = params.temperature > 0 and (params.top_k, params.top_p, params.min_p) != (
            0, 1.0, 0.0,
        )  # fmt: skip
        if num_generated >= params.min_tokens and not is_truncated:
            assert token == at_first[i]
        assert last_token[rows[i]] == token
        if num_generated < params.min_tokens:
            assert token not in STOP_TOKEN_IDS
        if params.temperature == 0:
            assert token == expected.token_ids[i]
        if params.top_k:
            x = logits[i].float()
            if num_generated < params.min_tokens:
                x[[4, 7]] = -torch.inf
            assert token in x.argsort(descending=True)[: params.top_k]

    assert reports is not None
    for i, entry in enumerate(reports.entries(n)):
        if PARAMS[i].logprobs is None:
            assert entry is None
            continue
        reference = expected.logprobs[i]
        assert entry is not None
        assert reference is not None
        top = [(one.token_id, one.rank) for one in entry.top]
        assert top == [(one.token_id, one.rank) for one in reference.top]
        assert len(top) == PARAMS[i].logprobs
        for one, other in zip(entry.top, reference.top, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert entry.sampled.token_id == token_ids[i]
        logprobs = torch.log_softmax(logits[i].float(), dim=-1)
        assert entry.sampled.logprob == pytest.approx(logprobs[token_ids[i]].item(), abs=1e-5)
        assert entry.sampled.rank == 1 + (logits[i] > logits[i, token_ids[i]]).sum()


def test_plain_rows_launch_nothing() -> None:
    from octavo.runner.special import choose_special

    params = [SamplingParams(), SamplingParams(temperature=0.0, top_k=3, top_p=0.1)]
    state = state_of(params)
    rows = np.arange(2)
    nothing = torch.empty(0, dtype=torch.int32)
    logits = make_logits(2)
    staging = Staging(torch.device("cpu"))
    arguments = (logits, nothing, nothing, rows, rows, state, staging)
    inputs = StepInputs(nothing, rows)
    assert choose_special(*arguments, changer_of(2, staging), inputs, {}) is None
