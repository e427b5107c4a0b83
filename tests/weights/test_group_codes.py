"""Unpacking against compressed-tensors, AutoRound and words by hand; and ggml's blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.weights.group_blocks import MOST_ERROR, as_half, make_blocks, minima, pick_format
from octavo.weights.group_codes import block_groups, read_codes, read_zeros, unpack
from octavo.weights.group_config import GroupScheme

GOLDEN = Path(__file__).with_name("gptq_by_autoround.npz")


def random_codes(data: st.DataObject, bits: int, rows: int, cols: int) -> torch.Tensor:
    seed = data.draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, cols), generator=generator).to(
        torch.int8
    )


@given(
    data=st.data(), bits=st.sampled_from([4, 8]), rows=st.integers(1, 40), cols=st.integers(1, 140)
)
@settings(deadline=None, max_examples=50)
def test_packed_is_what_compressed_tensors_packs(
    data: st.DataObject, bits: int, rows: int, cols: int
) -> None:
    """Any shape; all rows or some; and zero points, which are packed along rows."""
    codes = random_codes(data, bits, rows, cols)
    scheme = GroupScheme("packed", bits, 0)
    want = codes.numpy().astype(int) + 2 ** (bits - 1)
    words = pack_to_int32(codes, bits).numpy()
    begin = 8 * data.draw(st.integers(0, (rows - 1) // 8))
    end = data.draw(st.integers(begin + 1, rows))
    got = read_codes(words, scheme, begin, end, cols)
    assert got.flags.c_contiguous
    assert np.array_equal(got, want[begin:end])
    zeros = pack_to_int32(codes, bits, packed_dim=0).numpy()
    assert np.array_equal(read_zeros(zeros, scheme, rows, cols), want)
    plain = read_zeros(codes.numpy(), scheme, rows, cols)
    assert np.array_equal(plain, want)


@given(data=st.data(), rows=st.integers(1, 5), cols=st.integers(1, 70))
@settings(deadline=None)
def test_awq_is_what_the_converter_of_compressed_tensors_reads(
    data: st.DataObject, rows: int, cols: int
) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    words = torch.from_numpy(
        np.random.default_rng(seed).integers(-(2**31), 2**31, (cols, rows), np.int32)
    )
    codes, zeros = AutoAWQConverter.unpack_awq(words, words, 4)
    codes, zeros = AutoAWQConverter.reverse_awq_order(codes, zeros, 4)
    scheme = GroupScheme("awq", 4, 32)
    assert np.array_equal(read_codes(words.numpy(), scheme, 0, 8 * rows, cols), (codes & 15).T)
    part = read_codes(words.numpy(), scheme, 8 * (rows - 1), 8 * rows, cols)
    assert np.array_equal(part, (codes & 15).T[8 * (rows - 1) :])
    assert np.array_equal(read_zeros(words.numpy(), scheme, 8 * rows, cols), (zeros & 15).T)


@given(data=st.data(), bits=st.sampled_from([4, 8]), rows=st.integers(1, 5), cols=st.integers(1, 9))
@settings(deadline=None)
def test_gptq_is_packed_transposed(data: st.DataObject, bits: int, rows: int, cols: int) -> None:
    per_word = 32 // bits
    codes = random_codes(data, bits, rows * per_word, cols * per_word)
    want = codes.numpy().astype(int) + 2 ** (bits - 1)
    words = pack_to_int32(codes, bits).numpy().T
    got = read_codes(words, GroupScheme("gptq", bits, 0), 0, len(codes), codes.shape[1])
    assert np.array_equal(got, want)


def test_words_by_hand() -> None:
    word = np.array([[0x76543210]], np.int32)
    assert unpack(word, 4).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert unpack(word, 8).tolist() == [[0x10, 0x32, 0x54, 0x76]]
    awq = read_codes(word, GroupScheme("awq", 4, 0), 0, 8, 1)
    # AutoAWQ puts rows 0, 2, 4, 6, 1, 3, 5, 7 into a word from its lowest bits on.
    assert awq.ravel().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    gptq = read_codes(word, GroupScheme("gptq", 4, 0), 0, 1, 8)
    assert gptq.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_zero_points_of_both_formats(bits: int) -> None:
    """The first takes 1 from whole words, so that a zero point of 0 borrows from the next."""
    zeros = np.array([0, 1, 5, 15, 0, 0, 8, 7][: 32 // bits])
    word = sum(int(zero) << bits * i for i, zero in enumerate(zeros))
    ones = 0x11111111 if bits == 4 else 0x01010101
    stored = np.array([[(word - ones) % 2**32]], np.uint32).view(np.int32)
    first = read_zeros(stored, GroupScheme("gptq", bits, 0, 1), len(zeros), 1)
    assert first.ravel().tolist() == zeros.tolist()
    second = read_zeros(
        np.array([[word]], np.uint32).view(np.int32), GroupScheme("gptq", bits, 0), len(zeros), 1
    )
    assert second.ravel().tolist() == zeros.tolist()


@pytest.mark.parametrize("name", ["v1_asym4", "v2_asym4", "v1_sym8", "v1_asym8"])
def test_gptq_layers_that_autoround_packed(name: str) -> None:
    """Against what its own layer multiplies by (float16); the file says how it was made."""
    stored = {
        key.split(".")[1]: value for key, value in np.load(GOLDEN).items() if name in key
    }  # fmt: skip
    bits = int(name[-1])
    num_groups, num_rows = stored["scales"].shape
    num_cols = stored["weight"].shape[1]
    scheme = GroupScheme("gptq", bits, num_cols // num_groups, 1 if "v1" in name else 0)
    codes = read_codes(stored["qweight"], scheme, 0, num_rows, num_cols).astype(np.float32)
    zeros = read_zeros(stored["qzeros"], scheme, num_rows, num_groups)
    groups = np.arange(num_cols) // scheme.group_size
    weight = (codes - zeros[:, groups]) * stored["scales"].T.astype(np.float32)[:, groups]
    np.testing.assert_allclose(weight, stored["weight"], rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ([0.0, 1.0, -3.5, 65504.0], True),
        ([2.0**-14, 1 / 3], True),
        ([2.0**-24], True),  # exact, below the normal range
        ([1.1e-7], False),
        ([1e-9], False),
        ([65520.0], False),
        ([float("inf")], False),
        ([float("nan")], False),
    ],
)
def test_scales_that_float16_holds(values: list[float], holds: bool) -> None:
    array = np.array(values, np.float32)
    halves = as_half(array)
    assert (halves is not None) == holds
    if halves is not None:
        assert (abs(halves.astype(np.float64) - array) <= MOST_ERROR * abs(array)).all()


def test_every_bfloat16_scale_of_the_normal_range_is_exact() -> None:
    bits = np.arange(0x3880, 0x4780, dtype=np.uint32) << 16  # 2^-14 to 65536
    scales = bits.view(np.float32)
    halves = as_half(scales)
    assert halves is not None
    assert (halves == scales).all()


@given(
    data=st.data(), form=st.sampled_from(["Q4_0", "Q4_1", "Q8_0"]), rows=st.integers(1, 9),
    num_groups=st.integers(1, 3), size=st.sampled_from([32, 64, 128]),
)  # fmt: skip
@settings(deadline=None)
def test_blocks_are_decoded_by_the_gguf_package_to_the_same(
    data: st.DataObject, form: str, rows: int, num_groups: int, size: int
) -> None:
    """Q4_0 and Q8_0 exactly; Q4_1 but for its minimum, which float16 holds to 2^-11."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    bits = 8 if form == "Q8_0" else 4
    cols = num_groups * size
    codes = rng.integers(0, 2**bits, (rows, cols), np.uint8)
    scales = rng.uniform(0.001, 2, (rows, num_groups)).astype(np.float16)
    zeros = np.full((rows, num_groups), 2 ** (bits - 1), np.uint8)
    if form == "Q4_1":
        zeros = rng.integers(0, 16, (rows, num_groups), np.uint8)
        zeros[0, 0] = 3  # not all are 8
    assert pick_format(bits, scales.astype(np.float32), zeros) == (form, None)
    columns = np.arange(cols) // size
    groups = block_groups(columns)
    assert groups is not None
    mins: Any = as_half(minima(scales.astype(np.float32), zeros)) if form == "Q4_1" else None
    kind = gguf.GGMLQuantizationType[form]
    out = np.empty((rows, cols // 32 * gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    own = None if mins is None else mins[:, groups]
    make_blocks(form, codes, scales[:, groups], own, out)
    got = gguf.quants.dequantize(out, kind)
    exact = scales[:, columns].astype(np.float64) * (codes.astype(int) - zeros[:, columns])
    error = abs(got - exact)
    if form == "Q4_1":
        most = MOST_ERROR * zeros[:, columns] * scales[:, columns].astype(np.float64)
        assert (error <= most + 1e-6).all()
    else:
        assert error.max() == 0


def test_what_fits_no_block() -> None:
    scales = np.ones((2, 1), np.float32)
    assert pick_format(8, scales, np.full((2, 1), 127, np.uint8))[0] == "int8"
    assert pick_format(4, scales * 5000, np.full((2, 1), 15, np.uint8)) == (
        "int4", "zero points that float16 cannot hold"
    )  # fmt: skip
    assert block_groups(np.arange(64) // 16) is None
    mixed = np.arange(64) // 32
    mixed[5] = 1
    assert block_groups(mixed) is None
