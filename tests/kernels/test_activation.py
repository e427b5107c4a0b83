from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F

from octavo.layers.mlp import ACTIVATIONS
from tests.kernels.helper import DTYPES, assert_rounded_alike, random, require_triton, strided

if TYPE_CHECKING:
    from collections.abc import Callable

require_triton()

from octavo.kernels.activation import KINDS, gated  # noqa: E402

# Triton's interpreter computes in numpy, which warns of overflows that are meant.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

FLOAT64: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def test_every_activation_of_the_layer_has_a_kernel() -> None:
    assert set(ACTIVATIONS) == KINDS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (2, 1500), (7, 64)], ids=str)
def test_gated_rounds_the_activation_and_the_product(
    shape: tuple[int, int], kind: str, dtype: torch.dtype
) -> None:
    num_rows, size = shape
    x = random((num_rows, 2 * size), dtype, 0, scale=3.0)
    gate, up = x.chunk(2, dim=-1)
    actual = gated(x, kind)
    expected = FLOAT64[kind](gate.double()).to(dtype) * up
    atol = max(torch.finfo(dtype).eps / 8, 1e-5)
    torch.testing.assert_close(actual, expected, rtol=4 * torch.finfo(dtype).eps, atol=atol)
    # Far below zero, 1 + erf(x) has few digits in float32, in torch as here.
    near = gate > -2
    assert_rounded_alike(actual[near], expected[near])
    assert torch.equal(gated(strided(x, 6), kind), actual)
    assert torch.equal(gated(x, kind, columns=32), actual)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_large_values_stay_finite(kind: str) -> None:
    gate = torch.tensor([-1e4, -200.0, -90.0, -0.0, 0.0, 90.0, 200.0, 1e4])
    x = torch.cat((gate, torch.ones(8))).to(random((1,), torch.float32, 0).device)[None]
    expected = ACTIVATIONS[kind](x[:, :8].double()).float()
    torch.testing.assert_close(gated(x, kind), expected, rtol=1e-6, atol=1e-30)
