"""Native sampling against a reference that sorts in float64, in every instruction set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from octavo.kernels import cpu
from octavo.kernels.cpu.sampling import Parameters, report, sample
from octavo.runner.philox import uniform
from tests.kernels.cpu.sampling_reference import Params, acceptable, distances, falling_order

pytestmark = pytest.mark.usefixtures("isa")

NONE = np.empty(0, np.int64)
BIG = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
KINDS = [
    Params(),
    Params(0.6),
    Params(1.5, min_p=0.1),
    Params(top_k=5),
    Params(0.7, top_p=0.9),
    Params(0.8, 20, 0.9),
    Params(1.2, min_p=0.05, top_p=0.8),
    Params(1.3, 8, 0.95, 0.02),
    Params(top_k=1),
    Params(top_p=1e-9),
    Params(min_p=1.0),
    Params(1.0, 1000, 0.5),
    Params(1e4, 300),
    Params(0.0),
]


def parameters_of(params: list[Params]) -> Parameters:
    return Parameters(
        np.array([one.temperature for one in params], np.float32),
        np.array([one.top_k for one in params], np.int32),
        np.array([one.top_p for one in params], np.float32),
        np.array([one.farthest for one in params], np.float32),
        np.array([one.seed % 2**64 for one in params], np.uint64),
    )


def choose(
    logits: np.ndarray, params: list[Params], positions: np.ndarray | None = None, threads: int = 2
) -> list[int]:
    """One token for each row, whose parameters are those of the same place."""
    cpu.set_num_threads(threads)
    rows = np.arange(len(logits))
    if positions is None:
        positions = rows + 3
    tokens, packed = sample(torch.from_numpy(logits), rows, positions, parameters_of(params), NONE)
    assert packed is None
    return tokens.tolist()  # type: ignore[no-any-return]


def random_logits(num: int, vocab: int, seed: int, spread: float = 3.0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((num, vocab)) * spread
    return noise.astype(np.float32)


@pytest.mark.parametrize("params", KINDS, ids=str)
def test_tokens_are_those_of_a_sort(params: Params) -> None:
    """300 rows of each kind, few of them so near a bound that there is a choice."""
    num_wide = 0
    for vocab, num in ((1, 2), (17, 100), (1000, 100), (4099, 98)):
        spreads = np.geomspace(0.1, 10, num)[:, None].astype(np.float32)
        logits = random_logits(num, vocab, seed=vocab) * spreads
        positions = np.arange(num) * 7
        u = uniform(np.full(num, params.seed, np.uint64), positions)
        tokens = choose(logits, [params] * num, positions)
        for row, token in enumerate(tokens):
            right = acceptable(logits[row], params, u[row])
            assert token in right
            num_wide += len(right) > 1
    assert num_wide <= 6


@pytest.mark.parametrize("params", KINDS[:8], ids=str)
def test_a_model_s_vocabulary(params: Params) -> None:
    logits = random_logits(6, 49152, seed=5)
    logits[1::2, :30] += 14  # most of the mass on few tokens
    u = uniform(np.full(6, params.seed, np.uint64), np.arange(6) + 3)
    for row, token in enumerate(choose(logits, [params] * 6)):
        assert token in acceptable(logits[row], params, u[row])


def nearest_fractions(u: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Convergents of continued fractions: numerators and denominators up to `most`."""
    rest = u
    above, below = np.zeros(len(u), np.int64), np.ones(len(u), np.int64)
    above_before, below_before = np.ones(len(u), np.int64), np.zeros(len(u), np.int64)
    for _ in range(12):
        with np.errstate(divide="ignore"):
            inverse = np.minimum(1 / rest, 2.0**31)
        whole = inverse.astype(np.int64)
        more = whole * below + below_before <= most
        above, above_before = np.where(more, (whole * above + above_before, above),
                                       (above, above_before))  # fmt: skip
        below, below_before = np.where(more, (whole * below + below_before, below),
                                       (below, below_before))  # fmt: skip
        rest = np.where(more, inverse - whole, 0)
    return above, below


def test_the_uniform_number_is_the_projects() -> None:
    """Nearly to its last bit: n equal logits have bounds at k / n, and some of them are so near."""
    rng = np.random.default_rng(0)
    for seed in (0, 1, 2**63 + 12345, 2**64 - 1):
        positions = rng.integers(0, 2**45, 200_000)
        u = uniform(np.full(len(positions), seed, np.uint64), positions)
        above, below = nearest_fractions(u, 40_000)
        nearest = np.argsort(np.abs(u - above / below))[:12]
        assert abs(u - above / below)[nearest[5]] < 2.0**-43
        for at in nearest:
            num = int(below[at])
            logits = np.zeros((1, num), np.float32)
            (token,) = choose(logits, [Params(seed=seed)], positions[at : at + 1])
            assert token == int(u[at] * num)


floats = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1e-30, -1e-30, -math.inf, math.inf, BIG, -BIG, TINY]),
    st.floats(-30, 30, width=32),
    st.floats(width=32, allow_nan=False),
)
any_params = st.builds(
    Params,
    temperature=st.sampled_from([0.0, TINY, 1e-6, 0.3, 1.0, 2.0, 1e4, BIG]),
    top_k=st.sampled_from([0, 1, 2, 5, 50, 2**31 - 1]),
    top_p=st.sampled_from([TINY, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-3, 0.2, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.just(1), st.sampled_from([1, 2, 15, 33, 600])), elements=floats
    ),
    any_params,
    st.integers(0, 2**40),
)
def test_any_row(logits: np.ndarray, params: Params, position: int) -> None:
    u = uniform(np.array([params.seed], np.uint64), np.array([position]))[0]
    (token,) = choose(logits, [params], np.array([position]))
    assert token in acceptable(logits[0], params, u)


@pytest.mark.parametrize("params", KINDS, ids=str)
@pytest.mark.parametrize("strange", [np.nan, -np.nan, np.inf, -np.inf], ids=str)
def test_rows_with_what_is_no_number(params: Params, strange: float) -> None:
    logits = random_logits(40, 700, seed=1)
    logits[:, 5] = strange
    logits[::2, 600:603] = strange
    logits[-1] = strange
    u = uniform(np.zeros(40, np.uint64), np.arange(40) + 3)
    for row, token in enumerate(choose(logits, [params] * 40)):
        assert token in acceptable(logits[row], params, u[row])


def test_ties_at_the_border_of_truncation_go_by_token_id() -> None:
    logits = np.zeros((500, 40), np.float32)
    assert set(choose(logits, [Params(top_k=7)] * 500)) == set(range(7))
    assert set(choose(logits, [Params(top_p=0.5)] * 500)) == set(range(20))
    logits[:, ::2] = -0.0
    logits[:, 30] = 1e-30
    assert set(choose(logits, [Params(top_k=3)] * 500)) == {30, 0, 1}


def test_distances_that_scale_to_nothing_are_ties() -> None:
    logits = np.repeat(np.arange(8, dtype=np.float32)[None] * np.float32(-1e-8), 300, 0)
    assert set(choose(logits, [Params(BIG, top_p=0.99, min_p=1.0)] * 300)) == set(range(8))


@pytest.mark.parametrize("params", KINDS[:8], ids=str)
def test_distribution(params: Params) -> None:
    """Chi-square over many seeds."""
    num = 20_000
    logits = random_logits(1, 30, seed=2, spread=1.5)
    weights = np.exp((logits[0] - logits.max()).astype(np.float64) / params.temperature)
    weights[weights < params.min_p] = 0
    order = falling_order(logits[0])
    if params.top_k:
        weights[order[params.top_k :]] = 0
    sums = np.cumsum(weights[order])
    if params.top_p < 1:
        weights[order[np.searchsorted(sums, params.top_p * sums[-1]) + 1 :]] = 0
    many = [Params(params.temperature, params.top_k, params.top_p, params.min_p, s)
            for s in range(num)]  # fmt: skip
    tokens = choose(np.repeat(logits, num, 0), many, np.full(num, 9))
    counts = np.bincount(tokens, minlength=30)
    expected = weights / weights.sum() * num
    assert not counts[expected == 0].any()
    big = expected >= 5
    got = np.append(counts[big], counts[~big].sum())
    want = np.append(expected[big], expected[~big].sum())
    got, want = got[want > 0], want[want > 0]
    free = len(got) - 1
    # Wilson and Hilferty: a chi-square's cube root is nearly normal; 3.1 is exceeded in 1 of 1000.
    limit = free * (1 - 2 / (9 * free) + 3.1 * math.sqrt(2 / (9 * free))) ** 3
    assert ((got - want) ** 2 / want).sum() <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_depends_on_nothing_beside_it(dtype: torch.dtype) -> None:
    """Neither on other rows nor on threads: bit for bit, reports included."""
    vocab = 20_000
    params = [*KINDS] * 2
    num = len(params)
    logits = torch.from_numpy(random_logits(num, vocab + 5, seed=3)).to(dtype)[:, :vocab]
    rows, positions = np.arange(num), np.arange(num) * 5
    places = rows[::2].copy()
    parameters = parameters_of(params)
    cpu.set_num_threads(1)
    tokens, packed = sample(logits, rows, positions, parameters, places, 7)
    assert packed is not None
    for threads in (2, 8, 64):
        cpu.set_num_threads(threads)
        again, packed_again = sample(logits, rows, positions, parameters, places, 7)
        assert torch.equal(tokens, again)
        assert packed_again is not None
        assert torch.equal(packed, packed_again)
    cpu.set_num_threads(3)
    for row in range(num):
        one = slice(row, row + 1)
        where = NONE if row % 2 else np.array([0])
        alone, one_packed = sample(logits[one], rows[one], positions[one], parameters, where, 7)
        assert alone.item() == tokens[row].item()
        assert (one_packed is None) == (row % 2 == 1)
        if one_packed is not None:
            assert torch.equal(one_packed[0], packed[row // 2])
    wide, _ = sample(logits.float(), rows, positions, parameters, NONE)
    assert torch.equal(wide, tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab", [1, 3, 20, 600, 5000])
@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_reports(dtype: torch.dtype, vocab: int, num_top: int) -> None:
    cpu.set_num_threads(2)
    num_top = min(num_top, vocab)
    logits = torch.from_numpy(random_logits(9, vocab, seed=4)).to(dtype)
    logits[3, ::2] = -math.inf
    logits[4] = -math.inf
    logits[5, vocab // 2] = math.inf
    logits = (logits * 4).round() / 4  # ties
    given = torch.arange(9) * 7 % vocab
    check_reports(report(logits, given, num_top), logits, given, num_top)
    params = [Params(t, top_k=k, seed=i) for i in range(3) for t, k in ((0, 0), (1, 0), (0.5, 2))]
    rows = np.arange(9)
    for own in (None, logits.flip(1)[1:8]):
        places = rows if own is None else rows[1:8].copy()
        tokens, packed = sample(logits, rows, rows, parameters_of(params), places, num_top, own)
        assert packed is not None
        check_reports(packed, logits if own is None else own, tokens[places], num_top)


def check_reports(
    packed: torch.Tensor, logits: torch.Tensor, tokens: torch.Tensor, num_top: int
) -> None:
    numbers, bits = packed.numpy(), packed.numpy().view(np.float32)
    for i, values in enumerate(logits.float().numpy()):
        away = -distances(values).astype(np.float64)
        expected = away - np.log(np.exp(away).sum())
        ids = [int(tokens[i]), *falling_order(values)[:num_top].tolist()]
        assert [numbers[i, 0], *numbers[i, 3 : 3 + num_top]] == ids
        ranks = [1 + int((values > values[token]).sum()) for token in ids]
        assert [numbers[i, 1], *numbers[i, 3 + num_top : 3 + 2 * num_top]] == ranks
        got = [bits[i, 2], *bits[i, 3 + 2 * num_top :]]
        np.testing.assert_allclose(got, expected[ids], rtol=1e-6, atol=1e-6)


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    for token in (-1, 10):
        with pytest.raises(IndexError):
            report(torch.zeros(1, 10), torch.tensor([token]), 2)
