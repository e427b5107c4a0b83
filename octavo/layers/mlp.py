"""The gated feed-forward block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from octavo.errors import CheckpointError
from octavo.layers.fused import fused_kernels
from octavo.layers.linear import Linear
from octavo.layers.symbol import Symbol

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.quant.method import LinearMethod


class MLP(nn.Module):
    """Gated feed-forward: down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        method: LinearMethod,
        dtype: torch.dtype,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        parts = [intermediate_size] * 2
        self.gate_up_proj = Linear(hidden_size, parts, method, bias=bias, dtype=dtype)
        self.down_proj = Linear(intermediate_size, [hidden_size], method, bias=bias, dtype=dtype)
        if activation not in ACTIVATIONS:
            raise CheckpointError(f"activation {activation!r} is unknown")
        self.activation = activation
        self._activate = ACTIVATIONS[activation]
        self._kernels = fused_kernels("activation", torch.get_default_device())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[t, hidden] to [t, hidden]."""
        gate_up = self.gate_up_proj(x)
        if isinstance(gate_up, Symbol):
            gated = gate_up.recorder.gate(gate_up, self.activation)
        elif self._kernels is not None:
            gated = self._kernels.gated(gate_up, self.activation)
        else:
            gate, up = gate_up.chunk(2, dim=-1)
            gated = self._activate(gate) * up
        out: torch.Tensor = self.down_proj(gated)
        return out


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": nn.functional.silu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu": nn.functional.gelu,
}
