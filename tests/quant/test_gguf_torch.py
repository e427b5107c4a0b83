"""What torch computes where the native kernels are missing, against those kernels."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from octavo.kernels import cpu
from octavo.kernels.cpu import matmul
from octavo.quant.gguf_torch import GGUFTorch, round_activations
from octavo.quant.method import StoredBlocks
from octavo.quant.unquantized import Unquantized
from octavo.weights.block_formats import FORMATS_BY_NAME
from octavo.weights.gguf_blocks import dequantize
from tests.kernels.cpu.helper import pack, random_blocks, rounded

FORMATS = sorted(matmul.TYPES)
MAX_BLOCKS = 20


@pytest.fixture(autouse=True)
def _library() -> None:
    if cpu.why_not() is not None:
        pytest.skip(str(cpu.why_not()))


@functools.cache
def identity(num_blocks: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """An identity matrix of so many blocks of columns, packed for kernels and kept for torch: Q4_1
    with scale 1 and minimum 0.
    """
    size = 32 * num_blocks
    blocks = np.zeros((size, num_blocks, 20), np.uint8)
    blocks[:, :, :2] = np.array([1], "<f2").view(np.uint8)
    rows = np.arange(size)
    blocks[rows, rows // 32, 4 + rows % 16] = np.where(rows % 32 < 16, 1, 16)
    stored = blocks.reshape(size, -1)
    shape = (size, size)
    params = METHOD.keep([stored_part(stored, "Q4_1", shape, None)])
    return pack(stored, "Q4_1", shape), params


def assert_as_kernels(x: torch.Tensor) -> None:
    """A product with the identity has the kernels' bits."""
    packed, params = identity(x.shape[1] // 32)
    want = matmul.linear(x, packed, x.shape[1], None)
    torch.testing.assert_close(METHOD.apply(x, params, None), want, rtol=0, atol=0, equal_nan=True)


METHOD = GGUFTorch(Unquantized(torch.float32))

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
    got = round_activations(torch.from_numpy(x).float()).numbers().double().numpy()
    assert np.all(np.abs(got - want) <= 3e-7 * np.abs(want))


def stored_part(
    stored: np.ndarray, name: str, shape: tuple[int, int], order: torch.Tensor | None
) -> StoredBlocks:
    def decoded() -> torch.Tensor:
        return torch.from_numpy(dequantize(stored, name).reshape(shape))

    return StoredBlocks(name, shape, lambda: stored, decoded, order)


@pytest.mark.parametrize("name", FORMATS)
@settings(often, max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(1, 40),
    num_blocks=st.integers(1, 50),
    num_tokens=st.integers(1, 20),
)
def test_products_have_the_kernels_bits(
    name: str, seed: int, num_rows: int, num_blocks: int, num_tokens: int
) -> None:
    shape = (num_rows, num_blocks * FORMATS_BY_NAME[name].block_size)
    rng = np.random.default_rng(seed)
    stored = random_blocks(name, *shape, rng)
    x = rng.standard_normal((num_tokens, shape[1])) * 10.0 ** rng.integers(-2, 3, shape[1])
    x[rng.random(x.shape) < 0.1] = 0
    wide = torch.from_numpy(x.astype(np.float32))
    params = METHOD.keep([stored_part(stored, name, shape, None)])
    want = matmul.linear(wide, pack(stored, name, shape), num_rows, None)
    assert torch.equal(METHOD.apply(wide, params, None), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_parts_and_rows(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts, one in another order and one in another format, with a bias, x with a further
    dimension, few outputs at a time.
    """
    monkeypatch.setattr("octavo.quant.gguf_torch.CHUNK", 1)
    rng = np.random.default_rng(4)
    names, sizes = (name, name, "Q6_K"), (300, 24, 8)
    order = torch.from_numpy(rng.permutation(24))
    parts = [
        stored_part(random_blocks(each, size, 768, rng), each, (size, 768), own)
        for each, size, own in zip(names, sizes, (None, order, None), strict=True)
    ]
    assert METHOD.block_bytes(names, [(size, 768) for size in sizes]) > 4 * 332 * 768
    params = METHOD.keep(parts)
    assert sum(4 * tensor.numel() for tensor in params.values()) == METHOD.block_bytes(
        names, [(size, 768) for size in sizes]
    )
    x = torch.from_numpy(rng.standard_normal((2, 3, 768)).astype(np.float32)).to(dtype)
    bias = torch.from_numpy(rng.standard_normal(332).astype(np.float32)).to(dtype)
    got = METHOD.apply(x, params, bias)
    assert got.dtype == dtype
    wants = []
    for part, own in zip(parts, bias.split(list(sizes)), strict=True):
        packed = pack(part.stored(), part.block_format, part.shape, part.order)
        wants.append(matmul.linear(x.view(6, -1), packed, part.shape[0], own.contiguous()))
    assert torch.equal(got, torch.cat(wants, dim=1).view(2, 3, 332))
    ids = torch.tensor([3, 0])
    first = METHOD.keep(parts[:1])
    want_rows = matmul.decode_rows(pack(parts[0].stored(), name, (300, 768)), ids, 768, dtype)
    assert torch.equal(METHOD.rows(first, ids, 768, dtype), want_rows)
    for bad in (300, -1):
        with pytest.raises(IndexError):
            METHOD.rows(first, torch.tensor([bad]), 768, dtype)


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
    method = METHOD
    assert method.block_bytes(["Q4_1"] * 8, [(1, 32)] * 8) > 0
    assert method.block_bytes(["Q4_1"] * 9, [(1, 32)] * 9) == 0
    assert method.block_bytes(["Q4_1", "F16"], [(1, 32)] * 2) == 0
    x, weight = torch.randn(2, 40), torch.randn(3, 40)
    assert torch.equal(method.apply(x, {"weight": weight}, None), x @ weight.T)
