"""What torch computes where the native kernels are missing, against those kernels."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from octavo.config import cpu_activation_bits
from octavo.kernels import cpu
from octavo.kernels.cpu import matmul
from octavo.quant.gguf_torch import GGUFTorch, round_activations
from octavo.quant.method import StoredBlocks
from octavo.quant.unquantized import Unquantized
from octavo.weights.block_formats import FORMATS_BY_NAME
from octavo.weights.gguf_blocks import dequantize
from tests.kernels.cpu.helper import decode, pack, random_blocks, rounded

FORMATS = sorted(matmul.TYPES)
MAX_BLOCKS = 20


@pytest.fixture(autouse=True)
def _library() -> None:
    if cpu.why_not() is not None:
        pytest.skip(str(cpu.why_not()))


@functools.cache
def identity(num_blocks: int) -> torch.Tensor:
    """A packed identity matrix of so many blocks of columns: Q4_1 with scale 1 and minimum 0, whose
    products are exact with every instruction set (codes of 8 bits are moved by 128 with some).
    """
    size = 32 * num_blocks
    blocks = np.zeros((size, num_blocks, 20), np.uint8)
    blocks[:, :, :2] = np.array([1], "<f2").view(np.uint8)
    rows = np.arange(size)
    blocks[rows, rows // 32, 4 + rows % 16] = np.where(rows % 32 < 16, 1, 16)
    return pack(blocks.reshape(size, -1), "Q4_1", (size, size))


def assert_as_kernels(x: torch.Tensor) -> None:
    """`round_activations` gives what a product with the identity does. With AVX-512 both codes are
    one number that is rounded once, otherwise the second one's product is added before the sum is
    rounded, and torch rounds three times, the first code's product where it may be twice as large:
    up to two of the last bits may differ there.
    """
    num_blocks = x.shape[1] // 32
    want = matmul.linear(x, identity(num_blocks), x.shape[1], None)
    got = round_activations(x)
    # A number that is none spoils its row of the product, and its block of the activations.
    strange = want.isnan().any(dim=1)
    # A block's sum may be infinite though its numbers are not; kernels multiply it by the minimum.
    largest = x.abs().amax(dim=1)
    has_finite_sums = ~((largest > 1e37) & (largest < 1.27e38))
    assert torch.equal(strange[has_finite_sums], got.isnan().any(dim=1)[has_finite_sums])
    want, got = want[~strange], got[~strange]
    bit = torch.nextafter(want.abs(), torch.tensor(torch.inf)) - want.abs()
    assert ((got - want).abs() <= 2 * bit).all()
    exact = (got == want).view(len(want), num_blocks, 32).all(dim=-1)
    num_second = num_blocks if cpu_activation_bits() == 16 else -(-num_blocks // 4)
    assert ((~exact).sum(dim=1) <= num_second).all()


often = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EDGES = [
    0.0,
    1e-35,
    1.2699e-33,
    1.2701e-33,
    1e-40,
    1e36,
    1.2699e38,
    1.2701e38,
    3e38,
    0.5,
    1.0,
    127.0,
]


@often
@given(
    seed=st.integers(0, 2**32 - 1),
    num_tokens=st.integers(1, 9),
    num_blocks=st.integers(1, MAX_BLOCKS),
    spread=st.integers(0, 30),
)
def test_activations_of_all_sizes_are_rounded_as_kernels_do(
    seed: int, num_tokens: int, num_blocks: int, spread: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_tokens, num_blocks, 32))
    x *= 10.0 ** rng.uniform(-spread, spread, (num_tokens, num_blocks, 1))
    x[rng.random(x.shape) < 0.02] *= 200
    x[rng.random((num_tokens, num_blocks)) < 0.1] = 0
    assert_as_kernels(torch.from_numpy(x.reshape(num_tokens, -1)).float())


@often
@given(
    x=st.integers(1, MAX_BLOCKS).flatmap(
        lambda n: arrays.arrays(
            np.float32,
            (2, 32 * n),
            elements=st.sampled_from(EDGES + [-edge for edge in EDGES])
            | st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True),
        )
    )
)
def test_strange_numbers_are_rounded_as_kernels_do(x: np.ndarray) -> None:
    assert_as_kernels(torch.from_numpy(x))


@often
@given(seed=st.integers(0, 2**32 - 1), num_blocks=st.integers(1, MAX_BLOCKS))
def test_halves_and_equal_scales(seed: int, num_blocks: int) -> None:
    """Whole and half codes: ties go to the even one; and the first of equal scales come first."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-254, 255, (3, num_blocks, 32)) / 2
    x[:, :, rng.integers(32)] = 127
    x *= 2.0 ** rng.integers(-1, 2, (3, num_blocks, 1))
    assert_as_kernels(torch.from_numpy(x.reshape(3, -1)).float())


@given(
    seed=st.integers(0, 2**32 - 1),
    num_blocks=st.integers(1, MAX_BLOCKS),
)
@often
def test_rounding_in_float64(seed: int, num_blocks: int) -> None:
    """Against the way that products with kernels are tested by."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, 32 * num_blocks)) * 10.0 ** rng.integers(-3, 4, (4, 1))
    want = rounded(x)
    got = round_activations(torch.from_numpy(x).float()).double().numpy()
    # Three roundings, of which two may be of numbers twice as large as their sum.
    assert np.all(np.abs(got - want) <= 3e-7 * np.abs(want))


def stored_part(
    stored: np.ndarray, name: str, shape: tuple[int, int], order: torch.Tensor | None
) -> StoredBlocks:
    def decoded() -> torch.Tensor:
        return torch.from_numpy(dequantize(stored, name).reshape(shape))

    return StoredBlocks(name, shape, lambda: stored, decoded, order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_products_are_the_kernels(name: str, dtype: torch.dtype) -> None:
    """Two parts, one in another order, with a bias, x with a further dimension."""
    rng = np.random.default_rng(4)
    shapes = [(11, 768), (24, 768)]
    stored = [random_blocks(name, *shape, rng) for shape in shapes]
    order = torch.from_numpy(rng.permutation(24))
    method = GGUFTorch(Unquantized(torch.float32))
    parts = [
        stored_part(stored[0], name, shapes[0], None),
        stored_part(stored[1], name, shapes[1], order),
    ]
    assert method.block_bytes([name, name], shapes) == 4 * 35 * 768
    params = method.keep(parts)
    x = torch.from_numpy(rng.standard_normal((2, 3, 768)).astype(np.float32)).to(dtype)
    bias = torch.from_numpy(rng.standard_normal(35).astype(np.float32)).to(dtype)
    got = method.apply(x, params, bias)
    assert got.dtype == dtype
    flat, wants = x.view(6, -1), []
    for part, rows in zip(parts, ([0, 11], [11, 35]), strict=True):
        packed = pack(part.stored(), name, part.shape, part.order)
        own = bias[rows[0] : rows[1]].contiguous()
        wants.append(matmul.linear(flat, packed, part.shape[0], own))
    want = torch.cat(wants, dim=1).view(2, 3, 35)
    tolerance = 3e-6 if dtype == torch.float32 else 8e-3
    size = max(
        np.abs(decode(s, name, shape)).max() for s, shape in zip(stored, shapes, strict=True)
    )
    assert (got.float() - want.float()).abs().max() <= tolerance * 768 * size
    ids = torch.tensor([3, 0])
    rows = method.rows(method.keep(parts[:1]), ids, 768, dtype)
    want_rows = matmul.decode_rows(pack(stored[0], name, shapes[0]), ids, 768, dtype)
    assert torch.equal(rows, want_rows)
    with pytest.raises(IndexError):
        method.rows(params, torch.tensor([35]), 768, dtype)


@given(
    name=st.sampled_from([*FORMATS_BY_NAME, "NONE"]),
    num_rows=st.integers(0, 3) | st.sampled_from([2**31, 2**31 + 1]),
    num_cols=st.integers(0, 20).map(lambda n: 32 * n) | st.integers(0, 600) | st.just(2**31 + 256),
)
def test_the_same_layers_as_with_kernels(name: str, num_rows: int, num_cols: int) -> None:
    assert matmul.can_pack(name, num_rows, num_cols) == bool(
        matmul.packed_bytes(name, num_rows, num_cols)
    )


def test_layers_of_too_many_parts_are_left_to_the_other_method() -> None:
    method = GGUFTorch(Unquantized(torch.float32))
    assert method.block_bytes(["Q4_1"] * 8, [(1, 32)] * 8) > 0
    assert method.block_bytes(["Q4_1"] * 9, [(1, 32)] * 9) == 0
    assert method.block_bytes(["Q4_1", "F16"], [(1, 32)] * 2) == 0
    x, weight = torch.randn(2, 40), torch.randn(3, 40)
    assert torch.equal(method.apply(x, {"weight": weight}, None), x @ weight.T)
