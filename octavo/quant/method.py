"""What a quantization is to the layers: its tensors described as data, and one product.

`layers/linear.py` allocates, fills and shards the tensors by their `ParamSpec`; a method never
sees names, files or devices' ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One tensor of a linear layer.

    Attributes:
        name: as checkpoints spell it behind the layer's name (`weight`, `qweight`, `scales`).
        shape: of the whole layer, unsharded.
        dtype: as it is kept in memory.
        out_dim, in_dim: the dimension that runs along the layer's outputs and inputs, or None.
        out_pack, in_pack: features per element along these (8 for eight 4-bit values in an int32).
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    out_dim: int | None = None
    in_dim: int | None = None
    out_pack: int = 1
    in_pack: int = 1


class LinearMethod(Protocol):
    """How a linear layer keeps its weight and multiplies by it."""

    def param_specs(self, in_features: int, out_features: int) -> tuple[ParamSpec, ...]:
        """The layer's tensors."""
        ...

    def apply(
        self, x: torch.Tensor, params: dict[str, torch.Tensor], bias: torch.Tensor | None
    ) -> torch.Tensor:
        """X [..., in] times the weight's transpose, plus bias [out]: [..., out], in x's dtype."""
        ...
