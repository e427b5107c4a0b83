"""The kernels' arithmetic written in torch, against the kernels: the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels.cpu import reference
from octavo.kernels.cpu.plan import ACTIVATIONS, DTYPES, LOGITS, Kind, Op, cache_bytes
from tests.kernels.cpu.test_same_bits import random, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("native", "sums")

often = settings(max_examples=40, deadline=None)


@pytest.fixture(params=["torch's own", "in float64"], scope="module")
def sums(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to round a product and a sum once, where this torch has both."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in float64":
            patch.setattr(reference, "addcmul_is_fused", lambda: False)
        elif not reference.addcmul_is_fused():
            pytest.skip("torch.addcmul rounds twice here")
        yield


@often
@given(seed=st.integers(0, 2**31), size=st.integers(1, 70), spread=st.integers(0, 12))
def test_sums_of_products(seed: int, size: int, spread: int) -> None:
    a, b = random(2, size, seed=seed)
    c = -a * b * (1 + 10.0**-spread * random(size, seed=seed + 1))
    exact = a.double() * b.double() + c.double()  # 48 bits and 24: not exact where far apart
    assert torch.equal(reference.fused(a, b, c), exact.float())


@often
@given(width=st.integers(1, 700), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31))
def test_norms(width: int, scale: float, seed: int) -> None:
    x, weight = random(3, width, seed=seed) * scale, random(width, seed=seed + 1)
    out = torch.empty_like(x)
    op = Op(kind=Kind.NORM, input=x.data_ptr(), out=out.data_ptr(), weight=weight.data_ptr())
    op.width, op.eps = width, 1e-5
    run(op, 3)
    assert torch.equal(reference.norm(x, weight, op.eps), out)


@pytest.mark.parametrize("name", ACTIVATIONS)
@often
@given(width=st.integers(1, 300), scale=st.floats(0.01, 40), seed=st.integers(0, 2**31))
def test_gates(name: str, width: int, scale: float, seed: int) -> None:
    x = random(3, 2 * width, seed=seed) * scale
    x[0, 0], x[1, 0], x[2, 0] = 300.0, -300.0, torch.nan
    out = torch.empty(3, width)
    op = Op(kind=Kind.GATE, option=ACTIVATIONS[name], input=x.data_ptr(), out=out.data_ptr())
    op.width, op.in_width = width, 2 * width
    run(op, 3)
    # The error function is torch's, the kernels' is the C library's.
    most = 1e-5 * scale**2 if name == "gelu" else 0
    torch.testing.assert_close(reference.gate(x, name), out, rtol=0, atol=most, equal_nan=True)


@often
@given(
    heads=st.integers(1, 4), half=st.integers(1, 40), has_norms=st.booleans(),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_rotation(heads: int, half: int, has_norms: bool, seed: int) -> None:
    tokens, dim, size = 3, 2 * half, 16
    x = random(tokens, heads + 2, dim, seed=seed)
    angles = random(8, half, seed=seed + 1)
    table = torch.cat((angles.cos(), angles.sin()), -1)
    norms = random(2, dim, seed=seed + 2)
    positions, slots = torch.tensor([5, 0, 7]), torch.tensor([3, 4, 5])
    cache = torch.zeros(cache_bytes(torch.float32, 1, dim, size), dtype=torch.uint8)
    got = x.clone()
    op = Op(kind=Kind.ROTATE, dtype=DTYPES[torch.float32], out=got.data_ptr())
    op.width, op.weight, op.cache, op.eps = x[0].numel(), table.data_ptr(), cache.data_ptr(), 1e-6
    op.num_heads, op.num_kv_heads, op.head_dim, op.block_size = heads, 1, dim, size
    if has_norms:
        op.weight2, op.weight3 = norms[0].data_ptr(), norms[1].data_ptr()
    run(op, tokens, positions=positions.data_ptr(), slots=slots.data_ptr())
    want = x[:, : heads + 1]
    if has_norms:
        weights = norms[0].repeat(heads + 1, 1)
        weights[heads] = norms[1]
        want = reference.norm(want, weights, op.eps)
    cos, sin = table[positions].unsqueeze(1).chunk(2, dim=-1)
    assert torch.equal(reference.rotate(want, cos, sin), got[:, : heads + 1])


def test_soft_cap() -> None:
    logits = random(3, 5000, seed=0) * 40
    want = reference.soft_cap(logits, 30.0)
    op = Op(kind=Kind.SOFT_CAP, scope=LOGITS, width=5000, scale=30.0)
    run(op, 3, num_logits=3, logits=logits.data_ptr())
    assert torch.equal(logits, want)
