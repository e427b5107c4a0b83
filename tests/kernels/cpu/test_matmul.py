"""Products with packed blocks against float64 products with the decoded ones."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.kernels import cpu
from octavo.kernels.cpu import matmul
from octavo.weights.block_formats import FORMATS_BY_NAME
from octavo.weights.gguf_blocks import dequantize
from tests.kernels.cpu.helper import bound, decode, pack, random_blocks, rounded

FORMATS = sorted(matmul.TYPES)

often = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def close(got: torch.Tensor, want: np.ndarray, size: np.ndarray) -> None:
    """Equal up to float32's rounding of sums of this size."""
    assert np.all(np.abs(got.double().numpy() - want) <= 2e-6 * size + 1e-7)


@pytest.mark.parametrize("name", FORMATS)
@often
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(1, 40),
    num_blocks=st.integers(1, 5),
    num_tokens=st.integers(1, 40),
    threads=st.integers(1, 3),
)
def test_products(
    name: str, seed: int, num_rows: int, num_blocks: int, num_tokens: int, threads: int, isa: str
) -> None:
    num_cols = num_blocks * FORMATS_BY_NAME[name].block_size
    rng = np.random.default_rng(seed)
    stored = random_blocks(name, num_rows, num_cols, rng)
    x = torch.from_numpy(rng.standard_normal((num_tokens, num_cols)).astype(np.float32))
    x *= torch.from_numpy(10.0 ** rng.integers(-3, 4, (num_tokens, 1)).astype(np.float32))
    w = decode(stored, name, (num_rows, num_cols))
    cpu.set_num_threads(threads)
    y = matmul.linear(x, pack(stored, name, (num_rows, num_cols)), num_rows, None)
    exact = x.double().numpy()
    # The sums of codes and of minima are each larger than what they come to together.
    size = np.abs(exact) @ np.full((num_cols, num_rows), np.abs(w).max()) * 4
    close(y, rounded(exact) @ w.T, size)
    assert np.all(np.abs(y.double().numpy() - exact @ w.T) <= bound(exact, w) + 2e-6 * size)


@pytest.mark.parametrize("name", FORMATS)
def test_extreme_codes(name: str, isa: str) -> None:
    """Largest codes on both sides: where sums in 16 bits would overflow."""
    fmt = FORMATS_BY_NAME[name]
    shape = (9, 2 * max(fmt.block_size, 256))
    for fill in (0x00, 0x7F, 0x80, 0xFF):
        blocks = np.full((shape[0] * shape[1] // fmt.block_size, fmt.block_bytes), fill, np.uint8)
        stored = random_blocks(name, *shape, np.random.default_rng(1)).reshape(blocks.shape)
        if name == "Q6_K":
            blocks[:, 208:] = stored[:, 208:]
        else:
            blocks[:, :4] = stored[:, :4]
        blocks = blocks.reshape(shape[0], -1)
        w = decode(blocks, name, shape)
        for sign in (1.0, -1.0):
            x = torch.full((3, shape[1]), sign)
            x[1, ::2] *= -1
            y = matmul.linear(x, pack(blocks, name, shape), shape[0], None)
            exact = x.double().numpy()
            close(y, exact @ w.T, 4 * np.abs(exact) @ np.full(w.T.shape, np.abs(w).max()))


@pytest.mark.parametrize("name", FORMATS)
@often
@given(seed=st.integers(0, 2**32 - 1), num_rows=st.integers(1, 30), dtype=st.sampled_from("fbh"))
def test_rows_are_decoded_exactly(
    name: str, seed: int, num_rows: int, dtype: str, isa: str
) -> None:
    num_cols = 2 * max(FORMATS_BY_NAME[name].block_size, 32)
    rng = np.random.default_rng(seed)
    stored = random_blocks(name, num_rows, num_cols, rng)
    ids = torch.from_numpy(rng.integers(0, num_rows, 7))
    kind = {"f": torch.float32, "b": torch.bfloat16, "h": torch.float16}[dtype]
    rows = matmul.decode_rows(pack(stored, name, (num_rows, num_cols)), ids, num_cols, kind)
    want = torch.from_numpy(dequantize(stored, name).reshape(num_rows, num_cols))[ids].to(kind)
    torch.testing.assert_close(rows, want, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [-1, 16, 2**40])
def test_rows_beyond_the_end_are_an_error(bad: int, isa: str) -> None:
    packed = pack(random_blocks("Q8_0", 16, 32, np.random.default_rng(0)), "Q8_0", (16, 32))
    with pytest.raises(IndexError):
        matmul.decode_rows(packed, torch.tensor([3, bad]), 32, torch.float32)


def test_parts_bias_order_and_strides(isa: str) -> None:
    """Several formats in one product, rows in another order, x within a wider tensor."""
    rng = np.random.default_rng(5)
    names, rows = ("Q5_0", "Q6_K", "Q8_0"), (11, 8, 21)
    stored = [random_blocks(name, n, 256, rng) for name, n in zip(names, rows, strict=True)]
    orders = [torch.from_numpy(rng.permutation(n)) for n in rows]
    sizes = [matmul.packed_bytes(name, n, 256) for name, n in zip(names, rows, strict=True)]
    packed = matmul.allocate_packed(sum(sizes))
    weights = []
    for i, target in enumerate(packed.split(sizes)):
        shape = (rows[i], 256)
        matmul.pack(target, stored[i], names[i], shape, orders[i], is_last=i == 2)
        weights.append(decode(stored[i], names[i], shape)[orders[i].numpy()])
    w = np.concatenate(weights)
    bias = torch.from_numpy(rng.standard_normal(40).astype(np.float32))
    wide = torch.from_numpy(rng.standard_normal((7, 300)).astype(np.float32))
    for x in (wide[:, 20:276], wide.T.contiguous().T[:, :256]):
        y = matmul.linear(x, packed, 40, bias)
        want = rounded(x.double().numpy()) @ w.T + bias.double().numpy()
        close(y, want, np.full(want.shape, 4 * np.abs(w).max() * 256))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_activations_are_widened_and_the_result_rounded(
    dtype: torch.dtype, isa: str
) -> None:
    rng = np.random.default_rng(6)
    packed = pack(random_blocks("Q4_1", 24, 128, rng), "Q4_1", (24, 128))
    x = torch.from_numpy(rng.standard_normal((5, 128)).astype(np.float32)).to(dtype)
    bias = torch.from_numpy(rng.standard_normal(24).astype(np.float32)).to(dtype)
    want = matmul.linear(x.float(), packed, 24, bias.float()).to(dtype)
    torch.testing.assert_close(matmul.linear(x, packed, 24, bias), want, rtol=0, atol=0)


def test_what_is_no_number_stays_none(isa: str) -> None:
    packed = pack(random_blocks("Q4_1", 8, 64, np.random.default_rng(7)), "Q4_1", (8, 64))
    x = torch.ones(4, 64)
    x[1, 40], x[2, 3], x[3] = torch.nan, torch.inf, 0
    y = matmul.linear(x, packed, 8, None)
    assert torch.isfinite(y[0]).all()
    assert torch.isnan(y[1:3]).all()
    assert (y[3] == 0).all()


@pytest.mark.parametrize("name", FORMATS)
@often
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(1, 40),
    num_blocks=st.integers(1, 50),
    num_tokens=st.integers(1, 40),
)
def test_all_instruction_sets_give_the_same_bits(
    name: str, seed: int, num_rows: int, num_blocks: int, num_tokens: int, native: None
) -> None:
    num_cols = num_blocks * FORMATS_BY_NAME[name].block_size
    rng = np.random.default_rng(seed)
    packed = pack(random_blocks(name, num_rows, num_cols, rng), name, (num_rows, num_cols))
    x = rng.standard_normal((num_tokens, num_cols)) * 10.0 ** rng.integers(-2, 3, num_cols)
    x[rng.random(x.shape) < 0.1] = 0
    results = {}
    usual = cpu.isa()
    for each in cpu.available_isas():
        cpu.set_isa(each)
        results[each] = matmul.linear(
            torch.from_numpy(x.astype(np.float32)), packed, num_rows, None
        )
    cpu.set_isa(usual)
    for other, y in results.items():
        assert torch.equal(y, results[usual]), other


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_does_not_depend_on_its_neighbours(name: str, isa: str) -> None:
    rng = np.random.default_rng(10)
    packed = pack(random_blocks(name, 24, 768, rng), name, (24, 768))
    x = torch.from_numpy(rng.standard_normal((41, 768)).astype(np.float32))
    together = matmul.linear(x, packed, 24, None)
    for num_tokens in range(1, 15):
        some = matmul.linear(x[:num_tokens], packed, 24, None)
        torch.testing.assert_close(some, together[:num_tokens], rtol=0, atol=0)


def test_what_cannot_be_packed_takes_no_bytes(native: None) -> None:
    assert matmul.packed_bytes("Q4_1", 8, 32) > 0
    assert matmul.packed_bytes("Q4_1", 8, 48) == 0
    assert matmul.packed_bytes("Q4_K", 8, 128) == 0
    assert matmul.packed_bytes("Q4_1", 0, 32) == 0
    assert matmul.packed_bytes("F32", 8, 32) == 0
    assert matmul.packed_bytes("Q4_1", 2**40, 32) == 0


@pytest.mark.parametrize("name", FORMATS)
def test_packed_weights_are_as_small_as_the_file(name: str, native: None) -> None:
    stored = 512 * FORMATS_BY_NAME[name].row_bytes(2048)
    assert matmul.packed_bytes(name, 512, 2048) <= 1.03 * stored + 64


def test_many_callers_at_once_and_changing_thread_counts(native: None) -> None:
    """The pool has one job at a time; others compute alone, and nobody waits for ever."""
    rng = np.random.default_rng(9)
    packed = pack(random_blocks("Q8_0", 512, 256, rng), "Q8_0", (512, 256))
    x = torch.from_numpy(rng.standard_normal((32, 256)).astype(np.float32))
    want = matmul.linear(x, packed, 512, None)
    wrong: list[int] = []

    def work(index: int) -> None:
        for i in range(40):
            cpu.set_num_threads(1 + (i + index) % 4)
            if not torch.equal(matmul.linear(x, packed, 512, None), want):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def test_memory_for_many_matrices(native: None) -> None:
    """Aligned, apart from each other, and alive for as long as its last matrix."""
    memory = matmul.PackedMemory()
    sizes = [64, 1, 40 * 1024**2, 100, 20 * 1024**2, 20 * 1024**2]
    taken = [memory.take(size) for size in sizes]
    del memory
    for index, (each, size) in enumerate(zip(taken, sizes, strict=True)):
        assert each.numel() == size
        assert each.data_ptr() % matmul.ALIGNMENT == 0
        each[0] = each[-1] = index + 1
    assert (
        [int(each[0]) for each in taken] == [int(each[-1]) for each in taken] == [1, 2, 3, 4, 5, 6]
    )


def test_columns_beside_a_large_one_are_not_lost(isa: str) -> None:
    """One column of a block is 200 times the others, which one code of 8 bits would make zero."""
    stored = random_blocks("Q8_0", 8, 512, np.random.default_rng(3))
    w = decode(stored, "Q8_0", (8, 512))
    x = torch.zeros(1, 512)
    x[0, 64:96] = 0.5
    x[0, 70] = 200.0
    small = x.clone()
    small[0, 70] = 0
    packed = pack(stored, "Q8_0", (8, 512))
    found = matmul.linear(x, packed, 8, None).double().numpy() - 200.0 * w[:, 70]
    want = small.double().numpy() @ w.T
    assert np.abs(found - want).max() < 0.02 * np.abs(want).max()
