"""Self-attention of one decoder layer: projections, norms and rotation around the batch's backend.

Knows no checkpoint and no model family: what families differ in comes as arguments. Shapes: t
tokens, h query heads, k KV heads, j = h + 2k, d head dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn

from octavo.attention.interface import LayerAttention, RotaryArgs
from octavo.layers.linear import Linear
from octavo.layers.rotary import rotate

if TYPE_CHECKING:
    import torch

    from octavo.attention.interface import RotatingBackend
    from octavo.layers.batch import ForwardBatch
    from octavo.layers.norm import RMSNorm
    from octavo.layers.rotary import Rope, Rotary
    from octavo.quant.method import LinearMethod


class SelfAttention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245) with rotary positions.

    Args:
        index: which of the batch's KV caches is this layer's.
        hidden_size: of the layer's input and output.
        num_heads, num_kv_heads: the first is a multiple of the second.
        rotary: angles of the positions; its head_dim is the heads'.
        method, dtype: of the projections.
        qkv_bias, o_bias: whether the projections have biases.
        q_norm, k_norm: norms over each head's dimensions, before the rotation; both or none.
        scale: of the logits; None: 1 / sqrt(head_dim).
        window: sliding window, or None.
    """

    def __init__(
        self,
        index: int,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        rotary: Rotary,
        method: LinearMethod,
        dtype: torch.dtype,
        *,
        qkv_bias: bool = False,
        o_bias: bool = False,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
        scale: float | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        assert (q_norm is None) == (k_norm is None)
        self.index = index
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = rotary.head_dim
        parts = [n * self.head_dim for n in (num_heads, num_kv_heads, num_kv_heads)]
        self.qkv_proj = Linear(hidden_size, parts, method, bias=qkv_bias, dtype=dtype)
        self.o_proj = Linear(parts[0], [hidden_size], method, bias=o_bias, dtype=dtype)
        self.q_norm, self.k_norm = q_norm, k_norm
        self.rotary = rotary
        self.layer = LayerAttention(self.head_dim**-0.5 if scale is None else scale, window)
        self._rotary_args: RotaryArgs | None = None

    def forward(self, x: torch.Tensor, rope: Rope | None, batch: ForwardBatch) -> torch.Tensor:
        """[t, hidden] to [t, hidden]; keys and values of the tokens are written to the cache.

        Args:
            x: the layer's input, normalized.
            rope: `self.rotary(batch)`, computed once for all layers that share it.
            batch: the step.
        """
        qkv = self.qkv_proj(x)
        cache, backend, meta = batch.kv_caches[self.index], batch.backend, batch.meta
        if rope is None:
            rotating = cast("RotatingBackend", backend)
            args = self._rotary_args or self._make_rotary_args(
                qkv.device, is_open=rotating.extends_tables
            )
            q_thd = rotating.rotate_and_write(qkv, args, cache, meta)
            out_thd = rotating.attend(self.layer, q_thd, cache, meta)
        else:
            q_thd, k_tkd, v_tkd = self._rotated(qkv, rope)
            out_thd = backend.forward(self.layer, q_thd, k_tkd, v_tkd, cache, meta)
        out: torch.Tensor = self.o_proj(out_thd.reshape(x.shape[0], -1))
        return out

    def _rotated(
        self, qkv: torch.Tensor, rope: Rope
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads, kv_heads = self.num_heads, self.num_kv_heads
        qkv_tjd = qkv.view(qkv.shape[0], heads + 2 * kv_heads, self.head_dim)
        v_tkd = qkv_tjd[:, heads + kv_heads :]
        if self.q_norm is None or self.k_norm is None:
            # Queries and keys turn by the same angles, so both are rotated in one go.
            qk_tjd = rotate(qkv_tjd[:, : heads + kv_heads], *rope)
            return qk_tjd[:, :heads], qk_tjd[:, heads:], v_tkd
        q_thd = rotate(self.q_norm(qkv_tjd[:, :heads]), *rope)
        k_tkd = rotate(self.k_norm(qkv_tjd[:, heads : heads + kv_heads]), *rope)
        return q_thd, k_tkd, v_tkd

    def _make_rotary_args(self, device: torch.device, *, is_open: bool) -> RotaryArgs:
        rotary = self.rotary
        table = rotary.open_table(device) if is_open else rotary.table(device)
        if self.q_norm is None or self.k_norm is None:
            args = RotaryArgs(table)
        else:
            q_norm, k_norm = self.q_norm, self.k_norm
            args = RotaryArgs(table, q_norm.weight, k_norm.weight, q_norm.eps, q_norm.offset)
        self._rotary_args = args
        return args
