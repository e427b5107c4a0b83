from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.helper import DEVICE, DTYPES, HAS_GPU, random, require_triton, strided

require_triton()

from octavo.kernels import logprobs, truncated_bounds, truncated_draw  # noqa: E402
from octavo.kernels.truncated_sampling import sample_truncated  # noqa: E402

# Triton's interpreter computes in numpy, which warns of infinities that are meant.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INF, NAN = math.inf, math.nan
ALMOST_1 = 1 - 2**-24
LEFT_ALONE = -9


@dataclass(frozen=True)
class Params:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def draw(
    logits: torch.Tensor,
    params: Params | list[Params],
    u: float | list[float],
    split: int = 128,
    group: int = 16,
    few_groups: int = 8,
) -> list[int]:
    """Tokens of rows; last tokens are written in reverse, and checked here."""
    n = len(logits)
    each = params if isinstance(params, list) else [params] * n
    columns = [
        torch.tensor([getattr(one, name) for one in each], dtype=dtype, device=DEVICE)
        for name, dtype in (
            ("temperature", torch.float32),
            ("top_k", torch.int32),
            ("top_p", torch.float32),
            ("min_p", torch.float32),
        )
    ]
    us = torch.tensor(u if isinstance(u, list) else [u] * n, dtype=torch.float32, device=DEVICE)
    rows = torch.arange(n, dtype=torch.int32, device=DEVICE).flip(0)
    last_token, out = (
        torch.full((n,), LEFT_ALONE, dtype=torch.int32, device=DEVICE) for _ in range(2)
    )
    sample_truncated(
        logits, *columns, us, rows, last_token, out,
        split=split, group=group, few_groups=few_groups, num_warps=4, num_warps_draw=4,
    )  # fmt: skip
    assert torch.equal(last_token.flip(0), out)
    return out.tolist()


def row(values: list[float]) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32, device=DEVICE)


def kept(logits: torch.Tensor, params: Params, nudge: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """What sorting would keep, in float64: tokens in the order they are drawn in, and weights.

    `nudge` moves the bounds of top-p and min-p by such a part.
    """
    x = logits.double().cpu().numpy()
    x[np.isnan(x)] = -INF
    temperature, top_p, min_p = (
        float(np.float32(value)) for value in (params.temperature, params.top_p, params.min_p)
    )
    with np.errstate(invalid="ignore"):
        distance = (x.max() - x) / temperature
    distance[x == x.max()] = 0.0
    order = np.lexsort((np.arange(len(x)), distance))
    distance = distance[order]
    weights = np.exp(-distance)
    num = len(x)
    has_last_ties = top_p < 1 or min_p <= 0
    if min_p > 0:
        num = int((distance <= max(-math.log(min_p) + nudge, 0.0)).sum())
    if 0 < params.top_k < len(x):
        has_last_ties |= params.top_k <= num
        num = min(num, params.top_k)
    if top_p < 1:
        cdf = weights[:num].cumsum()
        num = min(num, int(np.searchsorted(cdf, (top_p + nudge) * cdf[-1])) + 1)
    order, weights = order[:num], weights[:num]
    is_tie = (x[order] == x[order[-1]]) & has_last_ties
    drawn_in = np.lexsort((order, is_tie))
    return order[drawn_in], weights[drawn_in]


def check(logits: torch.Tensor, params: Params, u: float, token: int) -> bool:
    """Whether the token was the only right one but for the rounding of sums, and it was checked."""
    near = [kept(logits, params, nudge) for nudge in (-1e-5, 0.0, 1e-5)]
    tokens, weights = near[1]
    assert token in set(near[0][0]) | set(near[2][0])
    if len({len(one[0]) for one in near}) > 1:
        return False
    cdf = weights.cumsum() / weights.sum()
    place = int(np.flatnonzero(tokens == token)[0])
    below = cdf[place - 1] if place else 0.0
    assert below - 1e-5 <= u <= cdf[place] + 1e-5
    assert weights[place] > 0
    if np.abs(cdf[:-1] - u).min(initial=1.0) <= 1e-5:
        return False
    assert token == tokens[np.searchsorted(cdf[:-1], u, side="right")]
    return True


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    vocab_size=st.integers(1, 400),
    params=st.builds(
        Params,
        temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
        top_k=st.sampled_from([0, 0, 1, 5, 20, 200]),
        top_p=st.sampled_from([1.0, 0.999, 0.9, 0.9, 0.5, 1e-6]),
        min_p=st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.3, 1.0]),
    ),
    few_groups=st.sampled_from([0, 1000]),
    scale=st.sampled_from([0.05, 1.0, 4.0]),
    has_many_ties=st.booleans(),
    forbidden=st.sampled_from([0.0, 0.0, 0.5, 0.97]),
    dtype=st.sampled_from([torch.bfloat16, *DTYPES]),
    seed=st.integers(0, 2**20),
)
def test_inverse_of_what_sorting_keeps(
    vocab_size: int,
    params: Params,
    few_groups: int,
    scale: float,
    has_many_ties: bool,
    forbidden: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    logits = random((1, vocab_size), torch.float32, seed, scale)
    if has_many_ties:
        logits = (logits * 4).round() / 4
    rng = np.random.default_rng(seed)
    mask = rng.random((1, vocab_size)) < forbidden
    mask[:, rng.integers(vocab_size)] = False
    logits[torch.from_numpy(mask).to(DEVICE)] = -INF
    logits = logits.to(dtype)
    # The largest number draws the last token that is kept.
    u = [float(np.float32(rng.random())), ALMOST_1]
    tokens = draw(logits.expand(2, -1), params, u, few_groups=few_groups)
    is_kept_all = not (0 < params.top_k < vocab_size or params.top_p < 1 or params.min_p > 0)
    if is_kept_all:
        assert tokens == [LEFT_ALONE] * 2
        return
    for token, number in zip(tokens, u, strict=True):
        check(logits[0], params, number, token)


CASES = [
    Params(top_k=5),
    Params(temperature=0.7, top_p=0.9),
    Params(temperature=1.5, top_p=0.95),
    Params(top_k=20, top_p=0.95),
    Params(temperature=1.3, min_p=0.05),
    Params(temperature=0.8, min_p=0.02, top_p=0.9),
    Params(temperature=0.8, top_k=40, top_p=0.9, min_p=0.02),
]


# Where top-p alone counts, rows that are measured first go another way.
WAYS = [(params, 0) for params in CASES]
WAYS += [(params, 1000) for params in CASES if not (params.top_k or params.min_p)]


@pytest.mark.parametrize(("params", "few_groups"), WAYS, ids=str)
def test_frequencies(params: Params, few_groups: int) -> None:
    """Evenly spaced numbers draw each token as often as its probability says, give or take one."""
    num = 24
    logits = random((1, 23), torch.bfloat16, 3, 2.0)
    u = ((np.arange(num) + 0.5) / num).astype(np.float32)
    tokens = draw(
        logits.expand(num, -1), params, u.tolist(), split=16, group=8, few_groups=few_groups
    )
    order, weights = kept(logits[0], params)
    expected = np.zeros(23)
    expected[order] = num * weights / weights.sum()
    assert np.abs(np.bincount(tokens, minlength=23) - expected).max() < 1.01
    places = {int(token): place for place, token in enumerate(order)}
    assert [places[token] for token in tokens] == sorted(places[token] for token in tokens)


@pytest.mark.parametrize("scale", [0.01, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_last_token_kept_of_a_larger_vocabulary(dtype: torch.dtype, scale: float) -> None:
    logits = random((1, 3000), dtype, 1, scale)
    num_exact = 0
    for params in (Params(top_p=0.9), Params(top_k=50, top_p=0.95)):
        for u in (0.4, ALMOST_1):
            token = draw(logits, params, u, split=512, group=32, few_groups=0)[0]
            num_exact += check(logits[0], params, u, token)
    assert num_exact >= 2


@pytest.mark.parametrize("few_groups", [0, 1000])
def test_ties_are_kept_by_token_id(few_groups: int) -> None:
    zeros = torch.zeros(1, 40, device=DEVICE)

    def last(logits: torch.Tensor, params: Params) -> int:
        return draw(logits, params, ALMOST_1, split=16, group=8, few_groups=few_groups)[0]

    assert last(zeros, Params(top_k=7)) == 6
    assert last(zeros, Params(top_p=0.5)) == 19
    assert last(zeros, Params(top_p=0.51)) == 20
    assert last(zeros, Params(top_k=30, top_p=0.5)) == 14
    assert last(zeros, Params(min_p=0.5)) == 39
    assert last(zeros, Params(min_p=0.5, top_k=38)) == 37
    logits = zeros.clone()
    logits[0, ::2] = -0.0  # no less than 0.0
    logits[0, 30] = 1e-30  # the smallest lead counts
    assert last(logits, Params(top_k=3)) == 1
    assert draw(logits, Params(top_k=3), 0.0, split=16, group=8)[0] == 30
    assert last(logits, Params(top_k=1)) == 30


@pytest.mark.parametrize(
    ("params", "few_groups"),
    [
        (Params(top_k=3), 0),
        (Params(top_p=0.9), 0),
        (Params(top_p=0.9), 1000),
        (Params(min_p=0.1), 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [1.2e-38, 1.0, 3e38])
def test_extremes(temperature: float, params: Params, few_groups: int) -> None:
    big = torch.finfo(torch.float32).max
    params = Params(temperature, params.top_k, params.top_p, params.min_p)
    lines = {
        (4,): [-INF] * 4 + [-3.0] + [-INF] * 3,
        (1, 6): [0.0, INF, big, 0.0, -big, -INF, INF, 5.0],
        (2, 3): [-INF, -INF, 1.0, 1.0] + [-INF] * 4,
        (5,): [NAN, 0.0, NAN, -1e30, NAN, 1e30, 3.0, -INF],
    }
    for allowed, values in lines.items():
        if allowed == (5,) and temperature > 1e30:
            continue  # there 0.0 and 1e30 are alike
        logits = row(values).expand(2, -1)
        tokens = draw(logits, params, [0.0, ALMOST_1], 16, 8, few_groups)
        assert tokens == [allowed[0], allowed[-1]]


@pytest.mark.parametrize("few_groups", [0, 1000])
@pytest.mark.parametrize("value", [-INF, NAN])
def test_if_all_are_forbidden_all_are_alike(value: float, few_groups: int) -> None:
    logits = torch.full((4, 40), value, device=DEVICE)
    u = [0.0, 0.26, 0.51, 0.99]
    for params, num in ((Params(top_k=8), 8), (Params(top_p=0.5), 20), (Params(min_p=0.5), 40)):
        assert draw(logits, params, u, 16, 8, few_groups) == [int(x * num) for x in u]


@pytest.mark.parametrize("u", [ALMOST_1, 1.0])
def test_never_a_token_without_mass(u: float) -> None:
    logits = torch.full((1, 100), -1e30, device=DEVICE)
    logits[0, :3] = 0.0
    for params in (Params(top_k=50), Params(top_p=0.99999), Params(min_p=1e-30)):
        for few_groups in (0, 1000):
            assert draw(logits, params, u, 16, 8, few_groups) == [2]


def test_a_row_does_not_depend_on_the_others() -> None:
    n = 10
    logits = random((n, 150), torch.bfloat16, 0, 2.0)
    params = [Params(0.0), Params(0.9), *CASES, Params(0.0, top_p=0.5)]
    u = np.random.default_rng(0).random(n).astype(np.float32).tolist()
    together = draw(logits, params, u, few_groups=3)
    alone = [draw(logits[i : i + 1], params[i], u[i], few_groups=3)[0] for i in range(n)]
    assert alone == together
    assert draw(strided(logits, 7), params, u, few_groups=3) == together


def test_rows_that_do_not_truncate_are_left_alone() -> None:
    logits = random((6, 50), torch.float32, 0)
    params = [
        Params(0.0, top_k=5),
        Params(0.0, top_p=0.5),
        Params(0.0, min_p=0.5),
        Params(),
        Params(top_k=50),
        Params(top_k=-1),
    ]
    assert draw(logits, params, 0.5) == [LEFT_ALONE] * 6


def test_padding_leaves_last_tokens() -> None:
    logits = random((3, 50), torch.float32, 0)
    ones, zeros = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    top_k = torch.ones(3, dtype=torch.int32, device=DEVICE)
    rows = torch.tensor([-1, 2, 0], dtype=torch.int32, device=DEVICE)
    last_token = torch.full((3,), LEFT_ALONE, dtype=torch.int32, device=DEVICE)
    out = torch.empty(3, dtype=torch.int32, device=DEVICE)
    sample_truncated(logits, ones, top_k, ones, zeros, zeros, rows, last_token, out)
    assert out.tolist() == logits.argmax(dim=-1).tolist()
    assert last_token.tolist() == [int(out[2]), LEFT_ALONE, int(out[1])]


@pytest.mark.parametrize("params", [Params(top_p=0.9), Params(top_k=20, top_p=0.95)], ids=str)
def test_a_large_vocabulary_with_the_sizes_in_use(params: Params) -> None:
    logits = random((1, 50257), torch.bfloat16, 0, 1.0)
    for u in (0.3, ALMOST_1):
        token = draw(logits, params, u, split=4096, group=128, few_groups=128)[0]
        assert check(logits[0], params, u, token) or params.top_k == 0


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
def test_batches_of_any_size_share_what_the_first_one_compiled() -> None:
    """Log-probabilities too: what changes from step to step must not reach the compiler."""
    kernels = (
        truncated_bounds.survey_kernel,
        truncated_bounds.bracket_kernel,
        truncated_bounds.narrow_kernel,
        truncated_draw.draw_kernel,
        logprobs.tally_kernel,
        logprobs.report_kernel,
    )

    def call(n: int, shift: int) -> int:
        floats = torch.ones(n + shift, device=DEVICE)[shift:]
        ints = torch.zeros(n + shift, dtype=torch.int32, device=DEVICE)[shift:]
        logits = random((n, 5008), torch.bfloat16, 0)
        last_token = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        sample_truncated(
            logits, floats, ints + 3, floats / 2, floats / 9, floats / 3, ints, last_token, ints
        )
        logprobs.report_logprobs(logits, ints.clamp(max=0), ints)
        return sum(len(kernel.device_caches[0][0]) for kernel in kernels)

    after = call(3, 0)
    for n, shift in ((1, 0), (1, 1), (16, 3), (17, 4), (300, 5)):
        assert call(n, shift) == after
