"""The gated activation between the two matmuls of a feed-forward block, in one launch.

As in `layers/mlp.py`, the activation is rounded to the input's dtype before the product with the
other half. Knows rows and columns alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels import pdl
from octavo.kernels.pdl import wait_then_release

COLUMNS = 1024
"""Columns of a program."""

NUM_WARPS = 4

KINDS = frozenset({"silu", "gelu_pytorch_tanh", "gelu"})


@triton.jit
def gated_kernel(
    x_ptr,
    out_ptr,
    stride_x,
    SIZE: tl.constexpr,
    COLS: tl.constexpr,
    KIND: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows * tiles of a row,): out = act(x[:, :SIZE]) * x[:, SIZE:]."""
    NUM_TILES: tl.constexpr = (SIZE + COLS - 1) // COLS
    pid = tl.program_id(0)
    row = (pid // NUM_TILES).to(tl.int64)
    cols = pid % NUM_TILES * COLS + tl.arange(0, COLS)
    real = cols < SIZE
    at = x_ptr + row * stride_x + cols
    if PDL:
        wait_then_release()
    gate = tl.load(at, mask=real, other=0.0).to(tl.float32)
    up = tl.load(at + SIZE, mask=real, other=0.0).to(tl.float32)
    if KIND == "gelu":
        active = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        # x * sigmoid(z); 0.5 * (1 + tanh(y)) is sigmoid(2y), without the cancellation.
        z = gate
        if KIND == "gelu_pytorch_tanh":
            z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        active = gate / (1.0 + tl.exp(-z))
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    out = active.to(dtype).to(tl.float32) * up
    tl.store(out_ptr + row * SIZE + cols, out.to(dtype), mask=real)


def gated(
    gate_up: torch.Tensor,
    kind: str,
    *,
    columns: int = COLUMNS,
    num_warps: int = NUM_WARPS,
) -> torch.Tensor:
    """act(gate) * up (Shazeer 2020, arXiv:2002.05202).

    Args:
        gate_up: [t, 2i], gates first; rows may lie apart, the values of a row lie side by side.
        kind: one of `KINDS`, named as in Hugging Face configs.
        columns: of a program, a power of two.
        num_warps: of a program.

    Returns:
        [t, i], contiguous, gate_up's dtype.
    """
    assert kind in KINDS, kind
    num_rows, width = gate_up.shape
    size = width // 2
    out = torch.empty((num_rows, size), dtype=gate_up.dtype, device=gate_up.device)
    gated_kernel[(num_rows * -(-size // columns),)](
        gate_up, out, gate_up.stride(0),
        SIZE=size, COLS=columns, KIND=kind, num_warps=num_warps, **pdl.options(gate_up.device),
    )  # fmt: skip
    return out
