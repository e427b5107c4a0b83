"""Weights that stay in ggml's blocks, multiplied by the native CPU kernels.

A layer whose formats the kernels do not know, or that is not quantized, is kept by another method:
`apply` goes by the tensors that it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.kernels.cpu import matmul

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from octavo.quant.method import LinearMethod, ParamSpec, StoredBlocks

BLOCKS = "blocks"
"""The one tensor that a layer has instead of `weight`: bytes, its parts behind each other."""


class GGUFNative:
    """See the module, and `method.BlockMethod`.

    Args:
        dense: the method of layers that are not kept in blocks.
    """

    def __init__(self, dense: LinearMethod) -> None:
        self._dense = dense
        self._num_outputs: dict[int, int] = {}  # by the address of a layer's blocks
        self._memory = matmul.PackedMemory()

    def param_specs(self, in_features: int, out_features: int) -> tuple[ParamSpec, ...]:
        """Of a layer that is not kept in blocks."""
        return self._dense.param_specs(in_features, out_features)

    def block_bytes(self, formats: Sequence[str], shapes: Sequence[tuple[int, int]]) -> int:
        """See `BlockMethod.block_bytes`."""
        if len(formats) > matmul.MAX_PARTS:
            return 0
        sizes = [
            matmul.packed_bytes(name, *shape) for name, shape in zip(formats, shapes, strict=True)
        ]
        return sum(sizes) if all(sizes) else 0

    def keep(self, parts: Sequence[StoredBlocks]) -> dict[str, torch.Tensor]:
        """See `BlockMethod.keep`."""
        sizes = [matmul.packed_bytes(part.block_format, *part.shape) for part in parts]
        packed = self._memory.take(sum(sizes))
        start = 0
        for part, size in zip(parts, sizes, strict=True):
            matmul.pack(
                packed.narrow(0, start, size),
                part.stored(),
                part.block_format,
                part.shape,
                part.order,
                is_last=part is parts[-1],
            )
            start += size
        self._num_outputs[packed.data_ptr()] = sum(part.shape[0] for part in parts)
        return {BLOCKS: packed}

    def apply(
        self, x: torch.Tensor, params: dict[str, torch.Tensor], bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `LinearMethod.apply`."""
        packed = params.get(BLOCKS)
        if packed is None:
            return self._dense.apply(x, params, bias)
        num_outputs = self._num_outputs[packed.data_ptr()]
        if x.dim() == 2:
            return matmul.linear(x, packed, num_outputs, bias)
        y = matmul.linear(x.reshape(-1, x.shape[-1]), packed, num_outputs, bias)
        return y.view(*x.shape[:-1], num_outputs)

    def rows(
        self, params: dict[str, torch.Tensor], ids: torch.Tensor, num_cols: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """See `BlockMethod.rows`."""
        return matmul.decode_rows(params[BLOCKS], ids, num_cols, dtype)
