"""A model's forward pass as the native kernels compute it, bit for bit, by torch.

The layers are asked with symbols, as when a step is recorded (`native_plan.py`), but each symbol
has its numbers, and what a layer would do is done at once: by `kernels/cpu/reference.py`, by the
layer's own method, and by `attention/reference.py`. Knows no model family.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from octavo.kernels.cpu import reference
from octavo.layers.mlp import ACTIVATIONS
from octavo.layers.rotary import Rotary
from octavo.layers.symbol import CannotRecordError, Symbol
from octavo.runner.sampler import largest

if TYPE_CHECKING:
    import torch

    from octavo.attention.interface import AttentionSpec, LayerAttention, RotaryArgs
    from octavo.layers.batch import ForwardBatch
    from octavo.layers.embedding import Embedding
    from octavo.layers.linear import Linear
    from octavo.layers.norm import RMSNorm
    from octavo.models.base import CausalModel


logger = logging.getLogger("octavo")


class Value(Symbol):
    """A symbol with its numbers, [rows, width].

    Args:
        recorder: the `Interpreter` that it is from, which takes no other symbols than these.
    """

    def __init__(self, recorder: Any, numbers: torch.Tensor) -> None:
        super().__init__(recorder, numbers.shape[-1])
        self.numbers = numbers


class Interpreter:
    """Does what layers tell a recorder. See `layers.symbol.Recorder`; also the attention of the
    batch that it runs, see `attention.interface.RotatingBackend`.

    Args:
        spec: the model's attention.
        batch: the step.
    """

    name = "interpreter"
    fuses_rotary = True
    extends_tables = True

    def __init__(self, spec: AttentionSpec, batch: ForwardBatch) -> None:
        self._spec, self._batch = spec, batch

    def embed(self, layer: Embedding, token_ids: Value) -> Value:
        """See `Recorder`."""
        rows: torch.Tensor = layer(token_ids.numbers)
        return Value(self, rows.float())

    def norm(self, layer: RMSNorm, x: Value) -> Value:
        """See `Recorder`."""
        weight = layer.weight.float() + layer.offset
        return Value(self, reference.norm(x.numbers, weight, layer.eps))

    def add_norm(self, layer: RMSNorm, x: Value, residual: Value) -> Value:
        """See `Recorder`."""
        residual.numbers += x.numbers
        return self.norm(layer, residual)

    def linear(self, layer: Linear, x: Value) -> Value:
        """See `Recorder`."""
        return Value(self, layer(x.numbers))

    def gate(self, x: Value, activation: str) -> Value:
        """See `Recorder`."""
        if activation not in ACTIVATIONS:
            raise CannotRecordError(f"the activation is {activation}")
        return Value(self, reference.gate(x.numbers, activation))

    def select(self, x: Value) -> Value:
        """See `Recorder`."""
        indices = self._batch.logit_indices
        assert indices is not None
        return Value(self, x.numbers.index_select(0, indices))

    def rotate_and_write(
        self, qkv: Value, args: RotaryArgs, cache: torch.Tensor, meta: None
    ) -> Value:
        """See `RotatingBackend`."""
        assert meta is None
        spec, batch = self._spec, self._batch
        heads, kv_heads = spec.num_heads, spec.num_kv_heads
        qkv_tjd = qkv.numbers.view(-1, heads + 2 * kv_heads, spec.head_dim)
        q_thd, k_tkd = qkv_tjd[:, :heads], qkv_tjd[:, heads : heads + kv_heads]
        v_tkd = qkv_tjd[:, heads + kv_heads :]
        if args.q_norm is not None and args.k_norm is not None:
            q_thd = reference.norm(q_thd, args.q_norm.float() + args.offset, args.eps)
            k_tkd = reference.norm(k_tkd, args.k_norm.float() + args.offset, args.eps)
        cos, sin = args.table.index_select(0, batch.positions).unsqueeze(1).chunk(2, dim=-1)
        q_thd, k_tkd = (reference.rotate(each, cos, sin) for each in (q_thd, k_tkd))
        batch.backend.write(k_tkd, v_tkd, cache, batch.meta)
        return Value(self, q_thd.reshape(len(q_thd), -1))

    def attend(self, layer: LayerAttention, q: Value, cache: torch.Tensor, meta: None) -> Value:
        """See `AttentionBackend`."""
        assert meta is None
        spec = self._spec
        q_thd = q.numbers.view(-1, spec.num_heads, spec.head_dim)
        out_thd = self._batch.backend.attend(layer, q_thd, cache, self._batch.meta)
        return Value(self, out_thd.reshape(len(out_thd), -1))


class ReferenceForward:
    """See the module, and `forward.Forward`.

    Args:
        model: with its weights loaded.
        spec: its attention, which the batches' backend (`ReferenceAttention`) serves.
    """

    def __init__(self, model: CausalModel, spec: AttentionSpec) -> None:
        self._model, self._spec = model, spec
        self._is_known = True
        self._rotaries = [module for module in model.modules() if isinstance(module, Rotary)]
        for rotary in self._rotaries:
            rotary.open_table(spec.device)

    def logits(self, batch: ForwardBatch) -> torch.Tensor:
        """See `Forward`."""
        logits = self._model.uncapped_logits(self.hidden(batch))
        cap = self._model.logit_soft_cap
        return logits if cap is None else reference.soft_cap(logits, cap)

    def largest(self, batch: ForwardBatch) -> torch.Tensor:
        """See `Forward`."""
        return largest(self.logits(batch))

    def hidden(self, batch: ForwardBatch) -> torch.Tensor:
        """See `Forward`. A model that does something else than layers tell is run as it is."""
        if self._is_known:
            try:
                return self._interpret(batch)
            except CannotRecordError as error:
                logger.info("torch runs the model layer by layer: %s", error)
                self._is_known = False
        hidden: torch.Tensor = self._model.model(batch)
        return hidden

    def _interpret(self, batch: ForwardBatch) -> torch.Tensor:
        interpreter = Interpreter(self._spec, batch)
        num_positions = int(batch.positions.max()) + 1
        for rotary in self._rotaries:
            rotary.extend(num_positions)
        told = cast("Any", Value(interpreter, batch.token_ids.unsqueeze(1)))
        told.numbers = batch.token_ids
        asked = replace(
            batch, token_ids=told, logit_indices=told, backend=cast("Any", interpreter), meta=None
        )
        hidden = self._model.model(asked)
        if not isinstance(hidden, Value):
            raise CannotRecordError("the model computes what it was to tell")
        return hidden.numbers
