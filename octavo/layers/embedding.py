"""Token embedding and output layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from octavo.layers.symbol import Symbol
from octavo.quant.method import BlockMethod

if TYPE_CHECKING:
    from octavo.quant.method import LinearMethod


class Embedding(nn.Module):
    """Row lookup; `scale` multiplies the rows (Gemma's sqrt(hidden size), in the rows' dtype).

    Args:
        num_rows, size: of the table.
        dtype: of the rows that are looked up.
        scale: see above.
        method: if it is a `BlockMethod`, the table is not allocated at first: the loader calls
            `keep_blocks` or `allocate`, as for `Linear`.
    """

    def __init__(
        self,
        num_rows: int,
        size: int,
        dtype: torch.dtype,
        *,
        scale: float | None = None,
        method: LinearMethod | None = None,
    ) -> None:
        super().__init__()
        self.num_rows, self.size, self.dtype = num_rows, size, dtype
        self.method = method if isinstance(method, BlockMethod) else None
        self._device = torch.get_default_device()
        self.params: dict[str, torch.Tensor] = {}
        if self.method is None:
            self.allocate()
        # Rounded as the rows are, and a number of the host's: nothing to copy in a step.
        rounded = None if scale is None else torch.tensor(scale, dtype=dtype, device="cpu")
        self.scale = None if rounded is None else float(rounded)

    @property
    def weight(self) -> torch.Tensor:
        """[num_rows, size], where the table is not kept in blocks."""
        return self.params["weight"]

    def allocate(self) -> None:
        """Make the table, uninitialized."""
        shape = (self.num_rows, self.size)
        self.params["weight"] = torch.empty(shape, dtype=self.dtype, device=self._device)

    def keep_blocks(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take the tensors that `BlockMethod.keep` gave."""
        self.params = tensors

    def tensors(self) -> dict[str, torch.Tensor]:
        """`weight`, or the method's blocks."""
        return self.params

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[t] ids to [t, size]."""
        if isinstance(token_ids, Symbol):
            return token_ids.recorder.embed(self, token_ids)
        weight = self.params.get("weight")
        if weight is not None:
            rows = F.embedding(token_ids, weight)
        else:
            assert self.method is not None
            rows = self.method.rows(self.params, token_ids, self.size, self.dtype)
        if self.scale is not None:
            rows = rows * self.scale
        return rows
