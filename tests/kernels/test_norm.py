from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from octavo.layers.norm import RMSNorm
from tests.kernels.helper import (
    DEVICE,
    DTYPES,
    assert_rounded_alike,
    random,
    require_triton,
    rounds_to_nearest,
    strided,
)

require_triton()

from octavo.kernels.norm import add_rms_norm, rms_norm  # noqa: E402

SHAPES = [(1, 1), (3, 7), (5, 64), (2, 100), (33, 48), (1, 2048), (2, 5120)]
EPS = 1e-5


def plain(weight: torch.Tensor, offset: float) -> RMSNorm:
    norm = RMSNorm(len(weight), EPS, weight.dtype, offset=offset)
    norm.weight = weight
    return norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_rounds_as_the_plain_layer(
    shape: tuple[int, int], offset: float, dtype: torch.dtype
) -> None:
    x, weight = random(shape, dtype, 0, scale=3.0), random(shape[1:], dtype, 1)
    before = x.clone()
    actual = rms_norm(x, weight, EPS, offset)
    assert_rounded_alike(actual, plain(weight, offset)(x))
    assert torch.equal(x, before)
    assert torch.equal(rms_norm(strided(x, 3), weight, EPS, offset), actual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sum_is_kept_in_the_residual_and_normed_as_it_was_rounded(
    shape: tuple[int, int], offset: float, dtype: torch.dtype
) -> None:
    x, weight = random(shape, dtype, 0), random(shape[1:], dtype, 1)
    residual = random(shape, dtype, 2, scale=5.0)
    total = residual + x
    apart = strided(residual, 5)
    actual = add_rms_norm(x, residual, weight, EPS, offset)
    if rounds_to_nearest(dtype):
        assert torch.equal(residual, total)
    assert_rounded_alike(actual, plain(weight, offset)(residual))
    assert torch.equal(add_rms_norm(strided(x, 3), apart, weight, EPS, offset), actual)
    assert torch.equal(apart, residual)
    assert_rounded_alike(residual, total)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_norm_against_float64(scale: float) -> None:
    x, weight = random((9, 333), torch.float32, 0, scale), random((333,), torch.float32, 1)
    expected = F.rms_norm(x.double(), (333,), weight.double(), EPS)
    torch.testing.assert_close(rms_norm(x, weight, EPS).double(), expected, rtol=1e-6, atol=1e-6)


def test_no_rows() -> None:
    x = torch.empty(0, 16, device=DEVICE)
    weight = torch.ones(16, device=DEVICE)
    assert rms_norm(x, weight, EPS).shape == (0, 16)
    assert add_rms_norm(x, x.clone(), weight, EPS).shape == (0, 16)
