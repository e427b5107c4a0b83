"""What a quantization is to the layers: its tensors described as data, and one product.

`layers/linear.py` allocates, fills and shards the tensors by their `ParamSpec`; a method never
sees names, files or devices' ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray


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


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """One projection's weight in blocks, as the checkpoint has it or with the same codes.

    Attributes:
        block_format: such as `Q4_K`.
        shape: (outputs, inputs).
        stored: reads the blocks, (outputs, bytes per row), not copied.
        decoded: the same as float32, (outputs, inputs), the caller's own.
        order: int64 [outputs], the stored row that becomes each row; None: as they are.
    """

    block_format: str
    shape: tuple[int, int]
    stored: Callable[[], NDArray[np.uint8]]
    decoded: Callable[[], torch.Tensor]
    order: torch.Tensor | None


@runtime_checkable
class BlockMethod(LinearMethod, Protocol):
    """A method that can keep a checkpoint's own blocks, layer by layer.

    The loader decides for each layer, when it has seen all formats: `keep`, or the tensors of
    `param_specs`. `apply` is given the one or the other.
    """

    def block_bytes(self, formats: Sequence[str], shapes: Sequence[tuple[int, int]]) -> int:
        """Bytes that a layer of these projections takes; 0: it cannot be kept in blocks."""
        ...

    def keep(self, parts: Sequence[StoredBlocks]) -> dict[str, torch.Tensor]:
        """The layer's tensors, made of the stored blocks of all its projections in order."""
        ...

    def rows(
        self, params: dict[str, torch.Tensor], ids: torch.Tensor, num_cols: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Rows [t, num_cols] of the one projection that `params` keep, for ids [t].

        Raises:
            IndexError: an id is no row.
        """
        ...
