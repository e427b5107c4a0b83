"""Codes and scales of stored blocks against the blocks' values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels.cpu import matmul
from octavo.quant.block_codes import STORED, read_codes
from octavo.weights.block_formats import FORMATS_BY_NAME
from octavo.weights.gguf_blocks import dequantize
from tests.kernels.cpu.helper import random_blocks


def test_the_formats_are_those_of_the_kernels() -> None:
    assert STORED.keys() == matmul.TYPES.keys()
    for name, size in STORED.items():
        assert FORMATS_BY_NAME[name].block_bytes == size


@pytest.mark.parametrize("name", STORED)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_rows=st.integers(1, 5), num_blocks=st.integers(1, 4))
def test_values(name: str, seed: int, num_rows: int, num_blocks: int) -> None:
    num_cols = num_blocks * FORMATS_BY_NAME[name].block_size
    stored = random_blocks(name, num_rows, num_cols, np.random.default_rng(seed))
    found = read_codes(stored, name)
    shape = (*found.scales.shape, -1)
    values = found.codes.reshape(shape) * found.scales[..., None]
    if found.minima is not None:
        values += found.minima[..., None]
    assert np.array_equal(values.reshape(-1), dequantize(stored, name))
