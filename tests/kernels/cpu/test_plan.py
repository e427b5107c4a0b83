"""Operations of a plan, one at a time, against float64; sizes that fill no vector included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels import cpu
from octavo.kernels.cpu.plan import (
    ACTIVATIONS,
    DTYPES,
    LOGITS,
    PACKED,
    Kind,
    Op,
    Plan,
    Step,
    cache_bytes,
)
from octavo.weights.gguf_blocks import dequantize
from tests.kernels.cpu.helper import pack, random_blocks

pytestmark = pytest.mark.usefixtures("isa")


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def run(op: Op, num_tokens: int, **step: Any) -> None:
    cpu.set_num_threads(2)
    Plan([op]).run(Step(num_tokens=num_tokens, num_seqs=num_tokens, **step))


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("width", [1, 7, 16, 33, 576])
@pytest.mark.parametrize("tokens", [1, 40])
def test_norms(width: int, tokens: int) -> None:
    x, residual, weight = (
        random(tokens, width),
        random(tokens, width, seed=1),
        random(width, seed=2),
    )
    out, total = torch.empty_like(x), residual.clone()
    op = Op(kind=Kind.NORM, input=x.data_ptr(), out=out.data_ptr(), weight=weight.data_ptr())
    op.width, op.eps = width, 1e-5
    run(op, tokens)
    torch.testing.assert_close(out.double(), normed(x, weight, op.eps), rtol=2e-6, atol=2e-6)
    op.kind, op.out2 = Kind.ADD_NORM, total.data_ptr()
    run(op, tokens)
    assert torch.equal(total, residual + x)
    torch.testing.assert_close(out.double(), normed(total, weight, op.eps), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("width", [3, 17, 1536])
def test_gates(name: str, width: int) -> None:
    x = torch.cat((random(5, width) * 8, random(5, width, seed=1)), 1)
    x[0, 0], x[0, 1], x[0, 2] = 300.0, -300.0, 0.0
    out = torch.empty(5, width)
    op = Op(kind=Kind.GATE, option=ACTIVATIONS[name], input=x.data_ptr(), out=out.data_ptr())
    op.width, op.in_width = width, 2 * width
    run(op, 5)
    gate, up = x.double().chunk(2, 1)
    how = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_pytorch_tanh": lambda v: torch.nn.functional.gelu(v, approximate="tanh"),
    }[name]
    torch.testing.assert_close(out.double(), how(gate) * up, rtol=1e-5, atol=2e-6)
    x[1, 0] = torch.nan
    run(op, 5)
    assert out[1, 0].isnan()


@pytest.mark.parametrize("dim", [4, 10, 64, 256])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_rotation_and_cache(dim: int, has_norm: bool, dtype: torch.dtype) -> None:
    heads, kv_heads, size, tokens, blocks = 5, 2, 12, 9, 3
    x = random(tokens, heads + 2 * kv_heads, dim)
    before = x.double()
    table, norms = random(40, dim, seed=1), random(2, dim, seed=2)
    positions = torch.tensor([0, 1, 39, 7, 7, 30, 2, 3, 4])
    slots = torch.randperm(blocks * size, generator=torch.Generator().manual_seed(3))[:tokens]
    cache = torch.zeros(blocks * cache_bytes(dtype, kv_heads, dim, size), dtype=torch.uint8)
    op = Op(
        kind=Kind.ROTATE, dtype=DTYPES[dtype], out=x.data_ptr(), weight=table.data_ptr(), eps=1e-6,
        width=x[0].numel(), cache=cache.data_ptr(), num_heads=heads, num_kv_heads=kv_heads,
        head_dim=dim, block_size=size,
    )  # fmt: skip
    if has_norm:
        op.weight2, op.weight3 = norms[0].data_ptr(), norms[1].data_ptr()
    run(op, tokens, positions=positions.data_ptr(), slots=slots.data_ptr())
    want = before.clone()
    if has_norm:
        want[:, :heads] = normed(want[:, :heads], norms[0], 1e-6)
        want[:, heads:-kv_heads] = normed(want[:, heads:-kv_heads], norms[1], 1e-6)
    cos, sin = table.double()[positions][:, None].chunk(2, -1)
    first, second = want[:, :-kv_heads].chunk(2, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    want[:, :-kv_heads] = turned
    torch.testing.assert_close(x.double(), want, rtol=1e-5, atol=1e-5)

    units = cache.view(blocks, kv_heads, -1)
    numbers = 2 * dim * size
    codes = units[..., : numbers * dtype.itemsize].contiguous().view(dtype)
    keys = codes[..., : numbers // 2].view(blocks, kv_heads, dim, size).transpose(2, 3)
    values = codes[..., numbers // 2 :].view(blocks, kv_heads, size, dim)
    kept = torch.stack((keys, values)).double()
    if dtype == torch.int8:
        scales = units[..., numbers:].contiguous().view(torch.float32)
        kept *= scales.view(blocks, kv_heads, 2, size).permute(2, 0, 1, 3)[..., None].double()
    kept = kept.permute(0, 1, 3, 2, 4).reshape(2, blocks * size, kv_heads, dim)
    wanted = torch.stack((x[:, heads:-kv_heads], x[:, -kv_heads:])).double()
    steps = {torch.float32: 0, torch.bfloat16: 2**-8, torch.int8: 0.51 / 127}
    bound = steps[dtype] * wanted.abs().amax(-1, keepdim=True)
    assert ((kept[:, slots] - wanted).abs() <= bound).all()
    others = torch.ones(blocks * size, dtype=torch.bool)
    others[slots] = False
    assert not kept[:, others].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embedding(dtype: torch.dtype) -> None:
    weight, ids = random(11, 35, dtype=dtype), torch.tensor([10, 0, 3])
    out = torch.empty(3, 35)
    op = Op(kind=Kind.EMBED, dtype=DTYPES[dtype], weight=weight.data_ptr(), num_rows=11, width=35)
    op.out, op.scale = out.data_ptr(), 2.5
    run(op, 3, token_ids=ids.data_ptr())
    assert torch.equal(out, weight[ids].float() * 2.5)
    for bad in (11, -1):
        ids[1] = bad
        with pytest.raises(IndexError, match="beyond the embedding's rows"):
            run(op, 3, token_ids=ids.data_ptr())


def test_embedding_of_blocks() -> None:
    stored = random_blocks("Q5_0", 9, 64, np.random.default_rng(0))
    packed, ids, out = pack(stored, "Q5_0", (9, 64)), torch.tensor([8, 1]), torch.empty(2, 64)
    op = Op(kind=Kind.EMBED, dtype=PACKED, weight=packed.data_ptr(), num_rows=9, width=64)
    op.out, op.scale = out.data_ptr(), 1.0
    run(op, 2, token_ids=ids.data_ptr())
    assert torch.equal(out, torch.from_numpy(dequantize(stored, "Q5_0").reshape(9, 64))[ids])


@pytest.mark.parametrize("width", [1, 30, 1024, 2500])
def test_soft_cap_and_the_largest(width: int) -> None:
    logits = random(3, width) * 20
    want = (logits.double() / 15).tanh() * 15
    op = Op(kind=Kind.SOFT_CAP, scope=LOGITS, width=width, scale=15.0)
    run(op, 3, num_logits=3, logits=logits.data_ptr())
    torch.testing.assert_close(logits.double(), want, rtol=1e-5, atol=1e-5)
    logits[1, width // 2 :] = 99.0  # the first of equals
    logits[2, width - 1] = torch.nan
    found = torch.empty(3, dtype=torch.int64)
    op.kind = Kind.ARGMAX
    run(op, 3, num_logits=3, logits=logits.data_ptr(), argmax=found.data_ptr())
    assert found.tolist() == logits.numpy().argmax(-1).tolist()


def test_selected_rows() -> None:
    x, out, indices = random(6, 5), torch.empty(2, 5), torch.tensor([5, 2])
    op = Op(kind=Kind.SELECT, scope=LOGITS, width=5, input=x.data_ptr(), out=out.data_ptr())
    run(op, 6, num_logits=2, logit_indices=indices.data_ptr())
    assert torch.equal(out, x[indices])


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 100), outputs=st.integers(1, 40), cols=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), has_bias=st.booleans(),
)  # fmt: skip
def test_plain_products(
    tokens: int, outputs: int, cols: int, dtype: torch.dtype, has_bias: bool
) -> None:
    x, weight = random(tokens, cols), random(outputs, cols, seed=1, dtype=dtype)
    bias, out = random(outputs, seed=2), torch.full((tokens + 1, outputs), 7.0)
    op = Op(kind=Kind.DENSE, dtype=DTYPES[dtype], input=x.data_ptr(), out=out.data_ptr())
    op.weight, op.width, op.in_width = weight.data_ptr(), outputs, cols
    op.weight2 = bias.data_ptr() if has_bias else None
    run(op, tokens)
    want = x.double() @ weight.double().T + (bias.double() if has_bias else 0)
    torch.testing.assert_close(out[:-1].double(), want, rtol=1e-5, atol=2e-5)
    assert (out[-1] == 7).all()
    # A row's result does not depend on those beside it.
    alone = torch.empty(1, outputs)
    op.input, op.out = x[tokens // 2].data_ptr(), alone.data_ptr()
    run(op, 1)
    assert torch.equal(alone[0], out[tokens // 2])
