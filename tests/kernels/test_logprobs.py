from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.kernels.helper import DEVICE, DTYPES, random, require_triton, strided

require_triton()

from octavo.kernels.logprobs import NUM_TOP, report_logprobs  # noqa: E402

# Triton's interpreter computes in numpy, which warns of infinities that are meant.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INF, NAN = math.inf, math.nan


def check(logits: torch.Tensor, places: list[int], token_ids: list[int], split: int = 64) -> None:
    """Against log-softmax and a stable sort of float64."""
    as_int32 = {"dtype": torch.int32, "device": DEVICE}
    out = report_logprobs(
        logits, torch.tensor(places, **as_int32), torch.tensor(token_ids, **as_int32),
        split=split, group=8,
    )  # fmt: skip
    ints = out.cpu().numpy()
    floats = ints.view(np.float32)
    for line, place in enumerate(places):
        x = logits[place].double().cpu().numpy()
        x[np.isnan(x)] = -INF
        with np.errstate(invalid="ignore"):
            below = np.where(x == x.max(), 0.0, x - x.max())
        logprobs = below - np.log(np.exp(below).sum())
        ranks = [1 + int((x > value).sum()) for value in x]
        token = token_ids[place]
        assert ints[line, :2].tolist() == [token, ranks[token]]
        np.testing.assert_allclose(floats[line, 2], logprobs[token], rtol=1e-5, atol=1e-5)
        num = min(NUM_TOP, len(x))
        order = np.lexsort((np.arange(len(x)), -x))[:num]
        assert ints[line, 3 : 3 + num].tolist() == order.tolist()
        assert ints[line, 3 + NUM_TOP :][:num].tolist() == [ranks[i] for i in order]
        np.testing.assert_allclose(
            floats[line, 3 + 2 * NUM_TOP :][:num], logprobs[order], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("vocab_size", [1, 2, 20, 33, 500])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_sorting(dtype: torch.dtype, vocab_size: int) -> None:
    logits = random((3, vocab_size), dtype, vocab_size, 3.0)
    check(logits, [2, 0], [int(logits[0].argmax()), 0, vocab_size - 1])


def test_ties() -> None:
    logits = torch.zeros(2, 300, device=DEVICE)
    logits[0, 40::7] = 1.0
    logits[0, 200] = 2.0
    logits[1, ::2] = -0.0
    logits[1, 299] = 1e-30
    check(logits, [0, 1], [47, 5])
    check(logits.bfloat16(), [1], [0, 299])


def test_infinities_and_nans() -> None:
    logits = random((5, 60), torch.float32, 0)
    logits[0, [3, 50]] = INF
    logits[1, 5:] = -INF
    logits[2] = -INF
    logits[3, ::2] = NAN
    logits[4, 1] = torch.finfo(torch.float32).max
    check(logits, [0, 1, 2, 3, 4], [50, 2, 7, 1, 1])


def test_rows_may_lie_apart() -> None:
    logits = random((4, 130), torch.float16, 1)
    check(strided(logits, 9), [3, 1, 0], [0, 1, 2, 3])


def test_a_large_vocabulary_with_the_sizes_in_use() -> None:
    logits = random((1, 50257), torch.bfloat16, 0, 2.0)
    tokens = torch.tensor([17], dtype=torch.int32, device=DEVICE)
    out = report_logprobs(logits, torch.zeros_like(tokens), tokens).cpu().numpy()
    x = logits[0].double().cpu().numpy()
    order = np.lexsort((np.arange(len(x)), -x))
    assert out[0, 3 : 3 + NUM_TOP].tolist() == order[:NUM_TOP].tolist()
    assert out[0, 1] == 1 + (x > x[17]).sum()
    expected = x[17] - np.log(np.exp(x).sum())
    np.testing.assert_allclose(out.view(np.float32)[0, 2], expected, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_equal_logits_have_one_log_probability_in_all_threads() -> None:
    logits = torch.randn(64, 128256, device="cuda").to(torch.bfloat16)
    token_ids = logits.argmax(-1).to(torch.int32)
    places = torch.arange(64, dtype=torch.int32, device="cuda")
    packed = report_logprobs(logits, places, token_ids).cpu()
    ids, values = packed[:, 3:23].long(), packed[:, 43:63].view(torch.float32)
    tops = logits.cpu().gather(1, ids)
    assert (tops[:, 1:] == tops[:, :-1]).any()
    assert torch.equal(tops[:, 1:] == tops[:, :-1], values[:, 1:] == values[:, :-1])
    assert (values[:, 1:] <= values[:, :-1]).all()
    assert torch.equal(packed[:, 2].view(torch.float32), values[:, 0])
