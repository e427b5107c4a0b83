"""Weights in the computing precision: one tensor, one product.

The product is torch's, except where a kernel of ours, or another algorithm of the library's, was
measured to be faster; which that is say `kernels/skinny_linear.py` and
`kernels/library_products.py`, by the shape alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from octavo.kernels.library_products import library_products
from octavo.quant.method import ParamSpec

if TYPE_CHECKING:
    from types import ModuleType

_UPCAST_FROM_ROWS = 3
"""Rows of x from which a CPU without 16-bit dot products gains by computing in float32."""


class Unquantized:
    """`weight` [out, in] in `dtype`.

    Some CPUs have no 16-bit matrix product and torch falls back to a loop of about 20 GFLOP/s on
    two cores, while float32 reaches 65 to 170: there the weight is widened for each product of
    several rows. Results are then more exact than bfloat16's own.
    """

    def __init__(self, dtype: torch.dtype, *, has_fast_16_bit: bool = True) -> None:
        self.dtype = dtype
        self._widens = dtype != torch.float32 and not has_fast_16_bit
        self._may_be_skinny = dtype in (torch.float16, torch.bfloat16)

    def param_specs(self, in_features: int, out_features: int) -> tuple[ParamSpec, ...]:
        """One weight, sharded along both dimensions."""
        return (ParamSpec("weight", (out_features, in_features), self.dtype, out_dim=0, in_dim=1),)

    def apply(
        self, x: torch.Tensor, params: dict[str, torch.Tensor], bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `LinearMethod.apply`."""
        weight = params["weight"]
        if self._widens and x.shape[0] >= _UPCAST_FROM_ROWS:
            wide_bias = None if bias is None else bias.float()
            return F.linear(x.float(), weight.float(), wide_bias).to(x.dtype)
        if self._may_be_skinny and x.dim() == 2:
            kernels = _skinny_kernels(x.device)
            if kernels is not None and x.is_contiguous() and weight.is_contiguous():
                config = kernels.choose(x.shape[0], *weight.shape)
                if config is not None:
                    y: torch.Tensor = kernels.skinny_linear(x, weight, bias, config)
                    return y
                products = library_products(x.device) if bias is None else None
                measured = None if products is None else products.apply(x, weight)
                if measured is not None:
                    return measured
        return F.linear(x, weight, bias)


@functools.cache
def _skinny_kernels(device: torch.device) -> ModuleType | None:
    """`kernels.skinny_linear`, if this is the kind of card that its table was measured on."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    if torch.cuda.get_device_capability(device) != (9, 0):
        return None
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("octavo.kernels.skinny_linear")


def has_fast_16_bit(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device multiplies matrices of a 16-bit type faster than float32."""
    if device.type != "cpu":
        return True
    capability = torch.backends.cpu.get_cpu_capability()
    if dtype == torch.bfloat16:
        return capability == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return capability == "AVX512" and torch.ops.mkldnn._is_mkldnn_fp16_supported()
