"""What the native kernels compute, bit for bit, by torch: arithmetic, and operations on rows.

The written definition of `src/vec.h` and `src/rows.h`. All tensors are float32 on a CPU; each
operator of torch that is used here rounds a number once; a quotient by a number that is no tensor
would be rounded twice. Products have a module of their own
(`quant/gguf_torch.py`), and so has attention (`attention/reference.py`).
"""

from __future__ import annotations

import functools

import torch

PROBED = 1027
"""Numbers that tell whether torch rounds once: several vectors, and some that fill none."""


def fused_(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Add a * b to `total`, in place, rounded once; a and b are broadcast.

    Where torch's own operator rounds twice, the sum is made in float64. It is exact but where
    exponents are far apart; rounding it again then gives another number once in 2^30 times.
    """
    if addcmul_is_fused():
        return total.addcmul_(a, b)
    return total.copy_(total.double().addcmul_(a.double(), b.double()))


def fused(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The sum a * b + c, rounded once; all have the result's shape or are broadcast to it."""
    shape = torch.broadcast_shapes(a.shape, b.shape, c.shape)
    return fused_(c.expand(shape).clone(memory_format=torch.contiguous_format), a, b)


@functools.cache
def addcmul_is_fused() -> bool:
    """Whether `torch.addcmul` of float32 rounds once on this processor, with this build."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    a, b, noise = torch.randn(3, 3, PROBED, generator=generator, device="cpu")
    c = -(a * b) * (1 + 1e-6 * noise)
    pairs = ((a, b), (a, b[:, :1]), (a[:1], b[:, :1]), (a.t().contiguous().t(), b))
    return all(
        torch.equal(c.clone().addcmul_(x, y), (c.double() + x.double() * y.double()).float())
        for x, y in pairs
    )


def exponential(x: torch.Tensor) -> torch.Tensor:
    """e^x as `exponential` of vec.h: 2^n times a polynomial; 0 below -87.3, not a number stays."""
    bounded = x.clamp(-88.0, 88.3)
    shifted = fused(bounded, _LOG2_E, _MAGIC)
    n = shifted - _MAGIC
    f = fused_(fused(n, _LN2_HIGH, bounded), n, _LN2_LOW)
    p = fused(f, _COEFFICIENTS[0], _COEFFICIENTS[1])
    for coefficient in _COEFFICIENTS[2:]:
        p = fused(p, f, coefficient)
    p = fused_(f.clone(), p, f * f).add_(1.0)
    powers = shifted.view(torch.int32) << 23  # of the magic number only n's bits are left
    result = (p.view(torch.int32) + powers).view(torch.float32)
    result = result.masked_fill_(x < -87.3, 0.0)
    return torch.where(x.isnan(), x, result)


def tangent(x: torch.Tensor) -> torch.Tensor:
    """The hyperbolic tangent."""
    return 1.0 - 2.0 / (1.0 + exponential(2.0 * x))


def soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """`cap * tanh(x / cap)`."""
    wide = _constant(cap)
    return wide * tangent(x * (1.0 / wide))


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of rows: squares are added up in float64."""
    mean = x.double().square_().sum(dim=-1, keepdim=True).float() / _constant(x.shape[-1])
    # torch's square root of float32 is not the nearest number everywhere.
    root = (mean + _constant(eps)).double().sqrt_().float()
    return x * (1.0 / root) * weight


def gate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """`activation(first half of x) * second half`, [t, 2 k] to [t, k].

    `gelu` (with the error function) is torch's, and may differ from the C library's by a last bit.
    """
    first, second = x.chunk(2, dim=-1)
    if activation == "silu":
        return first / (1.0 + exponential(-first)) * second
    if activation == "gelu_pytorch_tanh":
        u = first * _TWO_ROOTS * fused(_CUBE * first, first, _ONE)
        return first / (1.0 + exponential(-u)) * second
    assert activation == "gelu"
    return 0.5 * first * (1.0 + torch.erf(first * _HALF_ROOT)) * second


def rotate(x_thd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads turned by their positions' angles, [t, 1, d / 2] each."""
    first, second = x_thd.chunk(2, dim=-1)
    turned = (fused_(first * cos, -second, sin), fused_(second * cos, first, sin))
    return torch.cat(turned, dim=-1)


def _constant(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32, device="cpu")


_MAGIC = _constant(12582912.0)  # 1.5 * 2^23: adding it rounds to a whole number
_LOG2_E, _LN2_HIGH, _LN2_LOW = map(_constant, (1.44269504, -0.693359375, 2.12194440e-4))
_COEFFICIENTS = tuple(
    map(
        _constant,
        (
            1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
            1.6666665459e-1, 5.0000001201e-1,
        ),
    )
)  # fmt: skip
_ONE, _CUBE, _TWO_ROOTS, _HALF_ROOT = map(
    _constant, (1.0, 0.044715, 1.5957691216057308, 0.70710678)
)
