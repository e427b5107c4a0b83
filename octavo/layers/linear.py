"""Linear layers. Allocates and fills what a `LinearMethod` describes; knows no quantization.

A layer may hold several projections side by side (q, k, v; gate, up), so that one product
computes them all; checkpoints then load each into its `part`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from octavo.errors import CheckpointError
from octavo.quant.method import LinearMethod, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Sequence


class Linear(nn.Module):
    """y = x W^T + b over one or several output parts.

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
        self.params = {s.name: torch.empty(s.shape, dtype=s.dtype) for s in self.specs.values()}
        self.bias: torch.Tensor | None = None
        if bias:
            shape = (sum(out_parts),)
            self.specs["bias"] = ParamSpec("bias", shape, dtype, out_dim=0)
            self.bias = torch.empty(shape, dtype=dtype)

    def expected(self) -> list[tuple[str, int]]:
        """Every (tensor name, part) that must be loaded."""
        return [(name, part) for name in self.specs for part in range(len(self.out_parts))]

    def load(self, name: str, part: int, tensor: torch.Tensor, where: str) -> None:
        """Copy a checkpoint's tensor into its place.

        Args:
            name: such as `weight`.
            part: which projection.
            tensor: of that projection alone.
            where: the tensor's name in the checkpoint, for the error.

        Raises:
            CheckpointError: the shape is not what the configuration says.
        """
        spec = self.specs[name]
        target = self.bias if name == "bias" else self.params[name]
        assert target is not None
        if spec.out_dim is not None:
            start = sum(self.out_parts[:part]) // spec.out_pack
            target = target.narrow(spec.out_dim, start, self.out_parts[part] // spec.out_pack)
        copy_checked(target, tensor, where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        return self.method.apply(x, self.params, self.bias)


def copy_checked(target: torch.Tensor, source: torch.Tensor, where: str) -> None:
    """Copy in place after comparing shapes.

    Raises:
        CheckpointError: they differ.
    """
    if target.shape != source.shape:
        raise CheckpointError(
            f"tensor {where} has shape {tuple(source.shape)}, "
            f"the configuration asks for {tuple(target.shape)}"
        )
    target.copy_(source)
