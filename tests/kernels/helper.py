"""Where the kernels run: on the GPU, or in Triton's interpreter if the package is installed."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if HAS_GPU else "cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def require_triton() -> None:
    """To be called before a kernel's module is imported: the interpreter is chosen there."""
    if HAS_GPU:
        pytest.importorskip("triton", reason="triton is not installed")
        return
    os.environ["TRITON_INTERPRET"] = "1"
    # Older interpreters fail under numpy 2.4, which no longer makes numbers of arrays.
    pytest.importorskip("triton", minversion="3.8", reason="triton >= 3.8 is not installed")


def random(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 1.0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype).to(DEVICE)


def ints(values: object) -> torch.Tensor:
    """The values, on the device."""
    return torch.tensor(np.asarray(values), dtype=torch.int32, device=DEVICE)


def strided(x: torch.Tensor, gap: int) -> torch.Tensor:
    """The same rows, `gap` values apart."""
    wide = torch.full((x.shape[0], x.shape[1] + gap), torch.nan, dtype=x.dtype, device=x.device)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def rounds_to_nearest(dtype: torch.dtype) -> bool:
    """Triton's interpreter cuts bfloat16 off; float16 stands for both there."""
    return HAS_GPU or dtype != torch.bfloat16


def assert_rounded_alike(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the last bit of a few values, where float32 sums may round either way.

    A rounding too many or in another place would change every fourth value or so.
    """
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype == torch.float32:
        torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6)
        return
    step = torch.finfo(actual.dtype).eps
    if not rounds_to_nearest(actual.dtype):
        torch.testing.assert_close(actual, expected, rtol=4 * step, atol=4 * step)
        return
    torch.testing.assert_close(actual, expected, rtol=2 * step, atol=step / 8)
    num_different = int((actual != expected).sum())
    assert num_different <= 1 + actual.numel() // 50
