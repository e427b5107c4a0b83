from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.helper import DEVICE, DTYPES, random, require_triton, strided

require_triton()

from octavo.kernels.sampling import sample_plain  # noqa: E402

# Triton's interpreter computes in numpy, which warns of infinities that are meant.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INF, NAN = math.inf, math.nan
ALMOST_1 = 1 - 2**-24


def draw(
    logits: torch.Tensor,
    temperature: float | list[float],
    u: float | list[float],
    split: int = 16,
) -> list[int]:
    """Tokens of rows; last tokens are written in reverse, and checked here."""
    n = len(logits)
    t, us = (
        torch.tensor(x if isinstance(x, list) else [x] * n, dtype=torch.float32, device=DEVICE)
        for x in (temperature, u)
    )
    rows = torch.arange(n, dtype=torch.int32, device=DEVICE).flip(0)
    last_token = torch.full((n,), -7, dtype=torch.int32, device=DEVICE)
    out = torch.full((n,), -9, dtype=torch.int32, device=DEVICE)
    sample_plain(logits, t, us, rows, last_token, out, split=split, num_warps=4)
    assert torch.equal(last_token.flip(0), out)
    return out.tolist()


def row(values: list[float]) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32, device=DEVICE)


def cdf64(logits: torch.Tensor, temperature: float) -> np.ndarray:
    x = logits.double().cpu().numpy() / np.float32(temperature).astype(np.float64)
    weights = np.exp(x - x.max())
    cdf = np.cumsum(weights)
    return cdf / cdf[-1]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    vocab_size=st.integers(1, 300),
    split=st.sampled_from([16, 64, 128]),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    scale=st.sampled_from([0.1, 2.0, 20.0]),
    forbidden=st.sampled_from([0.0, 0.5, 0.95]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)
def test_inverse_of_the_distribution(
    vocab_size: int,
    split: int,
    temperature: float,
    scale: float,
    forbidden: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    n = 4
    logits = random((n, vocab_size), dtype, seed, scale)
    rng = np.random.default_rng(seed)
    mask = rng.random((n, vocab_size)) < forbidden
    mask[:, rng.integers(vocab_size)] = False
    logits[torch.from_numpy(mask).to(DEVICE)] = -INF
    u = rng.random(n).astype(np.float32)
    tokens = draw(logits, temperature, u.tolist(), split)
    for i, token in enumerate(tokens):
        cdf = cdf64(logits[i], temperature)
        assert not mask[i, token]
        below = cdf[token - 1] if token else 0.0
        assert below - 1e-5 <= u[i] <= cdf[token] + 1e-5
        expected = int(np.searchsorted(cdf, float(u[i]), side="right"))
        if np.abs(cdf - u[i]).min() > 1e-5:
            assert token == expected


@pytest.mark.parametrize("temperature", [0.6, 2.0])
def test_frequencies(temperature: float) -> None:
    """Evenly spaced numbers draw each token as often as its probability says, give or take one."""
    num, vocab_size = 120, 23
    logits = random((1, vocab_size), torch.bfloat16, 3, 2.0)
    u = ((np.arange(num) + 0.5) / num).astype(np.float32)
    tokens = draw(logits.expand(num, -1), temperature, u.tolist())
    counts = np.bincount(tokens, minlength=vocab_size)
    probs = np.diff(cdf64(logits[0], temperature), prepend=0.0)
    assert np.abs(counts - num * probs).max() < 1.01
    assert tokens == sorted(tokens)  # in token order, as u rises


@pytest.mark.parametrize("vocab_size", [1, 2, 16, 32])
def test_a_target_on_a_bound_belongs_to_the_token_above(vocab_size: int) -> None:
    logits = torch.zeros(vocab_size, vocab_size, device=DEVICE)
    u = [k / vocab_size for k in range(vocab_size)]
    assert draw(logits, 1.0, u) == list(range(vocab_size))
    just_below = [max(np.nextafter(np.float32(x), np.float32(-1)), 0.0) for x in u]
    assert draw(logits, 1.0, just_below) == [max(k - 1, 0) for k in range(vocab_size)]


def one_place(places: list[int], rest: float, value: float) -> torch.Tensor:
    """[n, 37] logits, all of a row alike but one."""
    logits = torch.full((len(places), 37), rest, device=DEVICE)
    logits[range(len(places)), places] = value
    return logits


PLACES = [0, 5, 15, 16, 31, 32, 36]


@pytest.mark.parametrize("u", [0.0, ALMOST_1, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.2e-38, 0.5, 3e38])
def test_all_but_one_forbidden(u: float, temperature: float) -> None:
    assert draw(one_place(PLACES, -INF, -3.0), temperature, u) == PLACES


@pytest.mark.parametrize("u", [0.0, 0.5, ALMOST_1, 1.0])
def test_one_token_has_all_the_mass(u: float) -> None:
    assert draw(one_place(PLACES, 0.0, 1e4), 1.0, u) == PLACES


@pytest.mark.parametrize("u", [ALMOST_1, 1.0])
def test_the_last_token_with_mass_where_no_sum_crosses(u: float) -> None:
    """A tail too small for float32 sums, and after it what must never be drawn."""
    logits = torch.full((1, 100), -30.0, device=DEVICE)
    logits[0, 0] = 0.0
    logits[0, 41:] = -INF
    assert draw(logits, 1.0, u)[0] in (0, 40)
    assert draw(logits, 1.0, 1.0) == [40]
    many = torch.full((1, 1000), 0.1, device=DEVICE)
    many[0, 777:] = -1e30
    assert draw(many, 0.3, u) == [776]


@pytest.mark.parametrize("u", [0.0, 0.3, 0.999])
def test_infinite_logits_share_all_the_mass(u: float) -> None:
    places = [3, 18, 36]
    logits = random((1, 37), torch.float32, 0)
    logits[0, places] = INF
    logits[0, 7] = -INF
    assert draw(logits, 0.8, u) == [places[int(u * 3)]]
    assert draw(logits, 0.0, u) == [3]


def test_if_all_are_forbidden_all_are_alike() -> None:
    logits = torch.full((1, 40), -INF, device=DEVICE)
    for u in (0.0, 0.26, 0.51, 0.99):
        assert draw(logits, 1.0, u) == [int(u * 40)]
    assert draw(logits, 0.0, 0.9) == [0]


@pytest.mark.parametrize(
    ("values", "token"),
    [
        ([1.0, 3.0, 3.0, 2.0], 1),
        ([0.0] * 40, 0),
        ([0.0] * 17 + [1.0] * 23, 17),
        ([-0.0, 0.0], 0),
        ([-1e30] * 20 + [-1e29], 20),
        ([-INF] * 20 + [-3e38], 20),
        ([0.0] * 16 + [INF] * 3, 16),
        ([NAN, 1.0, 2.0, NAN], 2),
        ([NAN] * 20 + [-INF, -5.0], 21),
        ([NAN] * 40, 0),
    ],
)
def test_greedy(values: list[float], token: int) -> None:
    assert draw(row(values), 0.0, 0.99) == [token]


def test_a_nan_is_never_drawn() -> None:
    logits = random((1, 40), torch.float32, 0)
    logits[0, ::3] = NAN
    tokens = draw(logits.expand(20, -1), 2.0, [i / 20 for i in range(20)])
    assert len(set(tokens)) > 5
    assert all(token % 3 for token in tokens)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_greedy_against_torch(dtype: torch.dtype) -> None:
    logits = random((20, 203), dtype, 0)
    assert draw(logits, 0.0, 0.5) == logits.float().argmax(dim=-1).tolist()


def test_a_row_does_not_depend_on_the_others() -> None:
    n = 12
    logits = random((n, 150), torch.bfloat16, 0, 2.0)
    temperature = [0.0 if i % 3 == 0 else 0.5 + i / 10 for i in range(n)]
    u = np.random.default_rng(0).random(n).astype(np.float32).tolist()
    together = draw(logits, temperature, u)
    alone = [draw(logits[i : i + 1], temperature[i], u[i])[0] for i in range(n)]
    assert alone == together
    assert draw(strided(logits, 7), temperature, u) == together


def test_padding_leaves_last_tokens() -> None:
    logits = random((4, 50), torch.float32, 0)
    zeros = torch.zeros(4, device=DEVICE)
    rows = torch.tensor([-1, 2, -1, 0], dtype=torch.int32, device=DEVICE)
    last_token = torch.full((3,), -7, dtype=torch.int32, device=DEVICE)
    out = torch.empty(4, dtype=torch.int32, device=DEVICE)
    sample_plain(logits, zeros, zeros, rows, last_token, out)
    assert out.tolist() == logits.argmax(dim=-1).tolist()
    assert last_token.tolist() == [int(out[3]), -7, int(out[1])]


def test_a_large_vocabulary_with_the_default_split() -> None:
    logits = random((2, 50257), torch.float32, 0, 3.0)
    tokens = draw(logits, 1.0, [0.25, 0.75], split=4096)
    for i, u in enumerate((0.25, 0.75)):
        cdf = cdf64(logits[i], 1.0)
        assert tokens[i] == int(np.searchsorted(cdf, u, side="right"))
