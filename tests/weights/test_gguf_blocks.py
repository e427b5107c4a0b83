"""Dequantization against the `gguf` package's, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import UnsupportedModelError
from octavo.weights import gguf_blocks
from octavo.weights.block_formats import FORMATS, FORMATS_BY_NAME

QUANTIZED = [name for name in gguf_blocks._DECODERS if name not in ("F32", "F16")]


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def finite(reference: np.ndarray) -> np.ndarray:
    """Blocks without NaN: its payload is whatever the processor makes of it."""
    return np.isfinite(reference).all(axis=-1)


def test_geometry_equals_the_gguf_package() -> None:
    for number, fmt in FORMATS.items():
        kind = gguf.GGMLQuantizationType(number)
        assert kind.name == fmt.name
        assert gguf.GGML_QUANT_SIZES[kind] == (fmt.block_size, fmt.block_bytes)


@pytest.mark.parametrize("name", QUANTIZED)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_blocks=st.integers(1, 40))
def test_random_blocks(name: str, seed: int, num_blocks: int) -> None:
    fmt = FORMATS_BY_NAME[name]
    packed = np.random.default_rng(seed).integers(
        0, 256, (num_blocks, fmt.block_bytes), dtype=np.uint8
    )
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name])
    got = gguf_blocks.dequantize(packed, name).reshape(want.shape)
    keep = finite(want)
    assert np.array_equal(bits(got[keep]), bits(want[keep]))
    assert np.array_equal(np.isfinite(got), np.isfinite(want))


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K", "Q4_K", "BF16"])
def test_more_than_one_chunk_with_a_ragged_end(name: str) -> None:
    fmt = FORMATS_BY_NAME[name]
    num_blocks = 2 * gguf_blocks.CHUNK_ELEMENTS // fmt.block_size + 3
    packed = np.random.default_rng(1).integers(0, 60, (num_blocks, fmt.block_bytes), dtype=np.uint8)
    out = np.full(num_blocks * fmt.block_size, np.nan, np.float32)
    assert gguf_blocks.dequantize(packed, name, out) is out
    want = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name])
    assert np.array_equal(bits(out), bits(want.reshape(-1)))


@pytest.mark.parametrize(("name", "dtype"), [("F32", np.float32), ("F16", np.float16)])
def test_plain_floats(name: str, dtype: type) -> None:
    values = np.random.default_rng(2).normal(size=1000).astype(dtype)
    got = gguf_blocks.dequantize(values.view(np.uint8), name)
    assert np.array_equal(got, values.astype(np.float32))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized_weights_come_back_near(name: str) -> None:
    weights = np.random.default_rng(3).normal(size=(8, 64)).astype(np.float32)
    packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name])
    got = gguf_blocks.dequantize(packed, name).reshape(weights.shape)
    assert np.abs(got - weights).max() < 0.4


def test_a_format_without_decoder_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="IQ1_S is not supported"):
        gguf_blocks.dequantize(np.zeros(50, np.uint8), "IQ1_S")
