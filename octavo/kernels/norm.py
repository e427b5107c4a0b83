"""RMSNorm, alone or after adding to the residual, in one launch.

The arithmetic, rounding included, is that of `layers/norm.py`: float32 inside; without an offset
the normalized value is rounded to the output's dtype before the product with the weight, with one
after it. Knows rows and columns alone, not which layer of what model they belong to.

One program takes one row and keeps it in registers, so every value is read and written once.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from octavo.kernels import pdl
from octavo.kernels.pdl import wait_then_release

_MAX_WARPS = 16
_COLUMNS_PER_WARP = 256  # 16 bytes of bfloat16 for each thread


@triton.jit
def normalize(x, rstd, weight, dtype: tl.constexpr, OFFSET: tl.constexpr):
    """Float32 `x` and `weight`, broadcast together, to a float32 value that `dtype` can hold."""
    if OFFSET != 0.0:
        return (x * rstd * (weight + OFFSET)).to(dtype).to(tl.float32)
    return ((x * rstd).to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)


@triton.jit
def norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    stride_x,
    stride_residual,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows,). With ADD, the residual's row becomes residual + x, and is what is normed."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, D_PAD)
    real = cols < D
    # Nobody writes it: while the kernel before is running, or at least before the reduction.
    weight = tl.load(weight_ptr + cols, mask=real, other=0.0).to(tl.float32)
    if PDL:
        wait_then_release()
    x = tl.load(x_ptr + row * stride_x + cols, mask=real, other=0.0).to(tl.float32)
    if ADD:
        at = residual_ptr + row * stride_residual + cols
        x += tl.load(at, mask=real, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(at, rounded, mask=real)
        x = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 0) / D + EPS)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    out = normalize(x, rstd, weight, dtype, OFFSET)
    tl.store(out_ptr + row * D + cols, out.to(dtype), mask=real)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float = 0.0,
    *,
    num_warps: int | None = None,
) -> torch.Tensor:
    """RMSNorm of each row (arXiv:1910.07467): x / sqrt(mean(x^2) + eps) * (offset + weight).

    Args:
        x: [t, d]; rows may lie apart, the values of a row lie side by side. Unchanged.
        weight: [d], contiguous, x's dtype.
        eps: added to the mean square.
        offset: added to the weight.
        num_warps: of a program; None: chosen by d.

    Returns:
        [t, d], contiguous, x's dtype.
    """
    return _norm(x, None, weight, eps, offset, num_warps)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float = 0.0,
    *,
    num_warps: int | None = None,
) -> torch.Tensor:
    """Add x to the residual, in place, and return the norm of the sum as it was rounded.

    Args:
        x: [t, d]; rows may lie apart. Unchanged.
        residual: [t, d], x's dtype; rows may lie apart. Overwritten with residual + x.
        weight: [d], contiguous, x's dtype.
        eps: added to the mean square.
        offset: added to the weight.
        num_warps: of a program; None: chosen by d.

    Returns:
        [t, d], contiguous, x's dtype.
    """
    return _norm(x, residual, weight, eps, offset, num_warps)


def _norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    num_warps: int | None,
) -> torch.Tensor:
    num_rows, size = x.shape
    padded, warps = _tile(size)
    out = torch.empty((num_rows, size), dtype=x.dtype, device=x.device)
    stride = 0 if residual is None else residual.stride(0)
    norm_kernel[(num_rows,)](
        x, x if residual is None else residual, weight, out, x.stride(0), stride,
        D=size, D_PAD=padded, EPS=eps, OFFSET=offset, ADD=residual is not None,
        num_warps=num_warps or warps, **pdl.options(x.device),
    )  # fmt: skip
    return out


@cache
def _tile(size: int) -> tuple[int, int]:
    """Columns of a program, a power of two, and its warps."""
    padded = triton.next_power_of_2(size)
    return padded, min(max(padded // _COLUMNS_PER_WARP, 1), _MAX_WARPS)
