"""Linear layers. Allocates and fills what a `LinearMethod` describes; knows no quantization.

A layer may hold several projections side by side (q, k, v; gate, up), so that one product
computes them all; checkpoints then load each into its `part`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from octavo.layers.symbol import Symbol
from octavo.quant.method import BlockMethod, LinearMethod, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Sequence


class Linear(nn.Module):
    """y = x W^T + b over one or several output parts.

    With a `BlockMethod` the weight is not allocated at first: the loader calls `keep_blocks` or
    `allocate`.

    Args:
        in_features: length of x.
        out_parts: outputs of each projection, in the order of the result.
        method: how the weight is kept.
        bias: whether there is a bias, in the method's dtype.
    """

    def __init__(
        self,
        in_features: int,
        out_parts: Sequence[int],
        method: LinearMethod,
        *,
        bias: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_parts = tuple(out_parts)
        self.method = method
        self.specs = {s.name: s for s in method.param_specs(in_features, sum(out_parts))}
        self._device = torch.get_default_device()
        self.params: dict[str, torch.Tensor] = {}
        self._weights = tuple(self.specs)
        if not isinstance(method, BlockMethod):
            self.allocate()
        self.bias: torch.Tensor | None = None
        if bias:
            shape = (sum(out_parts),)
            self.specs["bias"] = ParamSpec("bias", shape, dtype, out_dim=0)
            self.bias = torch.empty(shape, dtype=dtype)

    def allocate(self) -> None:
        """Make the method's tensors, uninitialized."""
        for name in self._weights:
            spec = self.specs[name]
            self.params[name] = torch.empty(spec.shape, dtype=spec.dtype, device=self._device)

    def keep_blocks(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take the tensors that `BlockMethod.keep` gave."""
        self.params = tensors

    def expected(self) -> list[tuple[str, int]]:
        """Every (tensor name, part) that must be loaded."""
        return [(name, part) for name in self.specs for part in range(len(self.out_parts))]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The layer's tensors by name, `bias` among them if there is one."""
        return self.params if self.bias is None else self.params | {"bias": self.bias}

    def part(self, name: str, part: int) -> torch.Tensor:
        """Where a checkpoint's tensor of one projection belongs: a view of the layer's own.

        Args:
            name: such as `weight`.
            part: which projection.
        """
        spec, tensor = self.specs[name], self.tensors()[name]
        if spec.out_dim is None:
            return tensor
        start = sum(self.out_parts[:part]) // spec.out_pack
        return tensor.narrow(spec.out_dim, start, self.out_parts[part] // spec.out_pack)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        if isinstance(x, Symbol):
            return x.recorder.linear(self, x)
        return self.method.apply(x, self.params, self.bias)
