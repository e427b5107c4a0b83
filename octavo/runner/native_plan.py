"""A model's step as one call of native code: its layers are written down once and replayed.

The same idea as a CUDA graph. The model's own forward is run with symbols (`layers/symbol.py`), and
what its layers would do becomes a list of native operations (`kernels/cpu/plan.py`), over buffers
that all layers share. Each step brings new tokens, places and tables. Knows no model family.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from octavo.attention.native_cpu import NativeMetadata
from octavo.kernels.cpu.memory import large_floats
from octavo.kernels.cpu.plan import (
    ACTIVATIONS,
    DTYPES,
    LOGITS,
    PACKED,
    TOKENS,
    Kind,
    Op,
    Plan,
    Step,
)
from octavo.layers.batch import ForwardBatch
from octavo.layers.embedding import Embedding
from octavo.layers.rotary import Rotary
from octavo.layers.symbol import CannotRecordError, Symbol
from octavo.quant.gguf_native import BLOCKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.attention.interface import AttentionSpec, LayerAttention, RotaryArgs
    from octavo.layers.linear import Linear
    from octavo.layers.norm import RMSNorm
    from octavo.models.base import CausalModel

LEAST_ROWS = 64
"""Tokens that buffers have room for at first."""


@dataclass(slots=True)
class _Recorded:
    """An operation whose buffers are not settled: `reads` and `writes` go to the op's fields."""

    op: Op
    reads: dict[str, Symbol] = field(default_factory=dict)
    writes: Symbol | None = None


class PlanRecorder:
    """Writes down what layers do; see `layers.symbol.Recorder`. Also the attention of the batch
    that it is recorded with, see `attention.interface.RotatingBackend`.

    Attributes:
        recorded: the operations so far.
        keep: tensors that they point to, beside buffers.
    """

    name = "recorder"
    fuses_rotary = True
    extends_tables = True

    def __init__(self, spec: AttentionSpec) -> None:
        self._spec = spec
        self.recorded: list[_Recorded] = []
        self.keep: list[torch.Tensor] = []

    def embed(self, layer: Embedding, token_ids: Symbol) -> Symbol:
        """See `Recorder`."""
        tensors = layer.tensors()
        weight = tensors.get(BLOCKS)
        dtype = PACKED
        if weight is None:
            weight = tensors["weight"]
            dtype = self._plain_dtype(weight)
        op = Op(
            kind=Kind.EMBED, dtype=dtype, weight=self._pointer(weight), num_rows=layer.num_rows,
            scale=1.0 if layer.scale is None else layer.scale,
        )  # fmt: skip
        return self._add(op, layer.size)

    def norm(self, layer: RMSNorm, x: Symbol) -> Symbol:
        """See `Recorder`."""
        weight = self._norm_weight(layer.weight, layer.offset)
        return self._add(Op(kind=Kind.NORM, weight=weight, eps=layer.eps), x.width, input=x)

    def add_norm(self, layer: RMSNorm, x: Symbol, residual: Symbol) -> Symbol:
        """See `Recorder`."""
        weight = self._norm_weight(layer.weight, layer.offset)
        op = Op(kind=Kind.ADD_NORM, weight=weight, eps=layer.eps)
        return self._add(op, x.width, input=x, out2=residual)

    def linear(self, layer: Linear, x: Symbol) -> Symbol:
        """See `Recorder`."""
        return self._add(self._product(layer.tensors(), x), sum(layer.out_parts), input=x)

    def gate(self, x: Symbol, activation: str) -> Symbol:
        """See `Recorder`."""
        if activation not in ACTIVATIONS:
            raise CannotRecordError(f"the activation is {activation}")
        op = Op(kind=Kind.GATE, option=ACTIVATIONS[activation], in_width=x.width)
        return self._add(op, x.width // 2, input=x)

    def select(self, x: Symbol) -> Symbol:
        """See `Recorder`."""
        assert not x.is_selected
        return self._add(Op(kind=Kind.SELECT), x.width, is_selected=True, input=x)

    def rotate_and_write(
        self, qkv: Symbol, args: RotaryArgs, cache: torch.Tensor, meta: None
    ) -> Symbol:
        """See `RotatingBackend`: done in place, so what is returned has keys and values too."""
        assert meta is None
        op = self._attention(Kind.ROTATE, cache)
        op.width, op.weight, op.eps = qkv.width, self._pointer(args.table), args.eps
        for name, weight in (("weight2", args.q_norm), ("weight3", args.k_norm)):
            if weight is not None:
                setattr(op, name, self._norm_weight(weight, args.offset))
        self.recorded.append(_Recorded(op, {"out": qkv}))
        return qkv

    def attend(self, layer: LayerAttention, qkv: Symbol, cache: torch.Tensor, meta: None) -> Symbol:
        """See `AttentionBackend`."""
        assert meta is None
        op = self._attention(Kind.ATTEND, cache)
        op.in_width, op.window = qkv.width, layer.window or 0
        op.scale, op.soft_cap = layer.scale, self._spec.soft_cap or 0.0
        return self._add(op, self._spec.num_heads * self._spec.head_dim, input=qkv)

    def logits(self, model: CausalModel, hidden: Symbol) -> None:
        """`CausalModel.compute_logits`, to the step's own memory."""
        embedding = model.model.embed_tokens
        assert isinstance(embedding, Embedding)
        tensors = embedding.tensors() if model.lm_head is None else model.lm_head.tensors()
        op = self._product(tensors, hidden)
        op.width, op.scope = model.shape.vocab_size, LOGITS
        self.recorded.append(_Recorded(op, {"input": hidden}))
        if model.logit_soft_cap is not None:
            cap = Op(kind=Kind.SOFT_CAP, scope=LOGITS, width=op.width, scale=model.logit_soft_cap)
            self.recorded.append(_Recorded(cap))
        most = Op(kind=Kind.ARGMAX, scope=LOGITS, width=op.width)
        self.recorded.append(_Recorded(most))

    def _product(self, tensors: dict[str, torch.Tensor], x: Symbol) -> Op:
        packed, bias = tensors.get(BLOCKS), tensors.get("bias")
        if packed is None:
            plain = tensors["weight"]
            dtype = self._plain_dtype(plain)
            op = Op(kind=Kind.DENSE, dtype=dtype, weight=self._pointer(plain), in_width=x.width)
        else:
            op = Op(kind=Kind.LINEAR, weight=self._pointer(packed), in_width=x.width)
        if bias is not None:
            op.weight2 = self._pointer(bias.float())
        return op

    def _plain_dtype(self, weight: torch.Tensor) -> int:
        if weight.dtype not in (torch.float32, torch.bfloat16):
            raise CannotRecordError(f"a layer's weights are in {weight.dtype}")
        return DTYPES[weight.dtype]

    def _add(self, op: Op, width: int, *, is_selected: bool = False, **reads: Symbol) -> Symbol:
        is_selected |= any(symbol.is_selected for symbol in reads.values())
        op.width, op.scope = width, LOGITS if is_selected else TOKENS
        out = Symbol(self, width, is_selected=is_selected)
        self.recorded.append(_Recorded(op, reads, out))
        return out

    def _attention(self, kind: Kind, cache: torch.Tensor) -> Op:
        spec = self._spec
        return Op(
            kind=kind, dtype=DTYPES[spec.stored_dtype], cache=self._pointer(cache),
            num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim,
            block_size=spec.block_size,
        )  # fmt: skip

    def _norm_weight(self, weight: torch.Tensor, offset: float) -> int:
        return self._pointer(weight.float() + offset)

    def _pointer(self, tensor: torch.Tensor) -> int:
        assert tensor.is_contiguous()
        self.keep.append(tensor)
        return tensor.data_ptr()


class NativePlan:
    """A model's forward pass as native operations; see `forward.Forward`.

    Args:
        model: with its weights loaded; they must stay where they are.
        spec: its attention, which `NativeAttention` serves.
        kv_caches: of `NativeAttention`, one per layer.

    Raises:
        CannotRecordError: the model does something that no operation does.
    """

    def __init__(
        self, model: CausalModel, spec: AttentionSpec, kv_caches: Sequence[torch.Tensor]
    ) -> None:
        recorder = PlanRecorder(spec)
        symbol: Any = Symbol(recorder, 1)
        batch = ForwardBatch(symbol, symbol, symbol, cast("Any", recorder), None, kv_caches)
        hidden = model.model(batch)
        if not isinstance(hidden, Symbol):
            raise CannotRecordError("the model computes what it was to record")
        self._num_hidden_ops = len(recorder.recorded)
        recorder.logits(model, hidden)
        self._recorded, self._keep = recorder.recorded, recorder.keep
        self._rotaries = [module for module in model.modules() if isinstance(module, Rotary)]
        self._hidden = hidden
        self._vocab_size, self._dtype = model.shape.vocab_size, spec.dtype
        self._max_rows = 0
        self._logits = torch.empty(0, 0, device="cpu")
        self.times: torch.Tensor | None = None
        """[operations] int64, to which each step adds nanoseconds; None: nothing is measured."""

    @property
    def kinds(self) -> list[Kind]:
        """Of the operations in order."""
        return [Kind(recorded.op.kind) for recorded in self._recorded]

    def logits(self, batch: ForwardBatch) -> torch.Tensor:
        """See `Forward`; float32."""
        step = self._step(batch)
        logits = self._make_logits(step.num_logits)
        step.logits = logits.data_ptr()
        self._plan.run(step)
        return logits

    def largest(self, batch: ForwardBatch) -> torch.Tensor:
        """See `Forward`."""
        step = self._step(batch)
        step.logits = self._make_logits(step.num_logits).data_ptr()
        found = torch.empty(step.num_logits, dtype=torch.int64, device="cpu")
        step.argmax = found.data_ptr()
        self._plan.run(step)
        return found

    def hidden(self, batch: ForwardBatch) -> torch.Tensor:
        """See `Forward`."""
        step = self._step(batch)
        self._plan.run(step, self._num_hidden_ops)
        return self._buffers[self._hidden][: step.num_logits].to(self._dtype)

    def _make_logits(self, num_logits: int) -> torch.Tensor:
        """Room for a step's logits; it grows by doubling, for fresh pages are slow to come."""
        if len(self._logits) < num_logits:
            num_rows = 1 << (num_logits - 1).bit_length()
            self._logits = large_floats(num_rows, self._vocab_size)
        return self._logits[:num_logits]

    def _step(self, batch: ForwardBatch) -> Step:
        """The batch as the plan takes it; valid as long as the batch is."""
        assert isinstance(batch.meta, NativeMetadata)
        indices = batch.logit_indices
        assert indices is not None
        for tensor in (batch.token_ids, batch.positions, indices):
            assert tensor.dtype == torch.int64
            assert tensor.is_contiguous()
        num_positions = int(batch.positions.max()) + 1
        for rotary in self._rotaries:
            rotary.extend(num_positions)
        num_tokens, num_logits = len(batch.token_ids), len(indices)
        if max(num_tokens, num_logits) > self._max_rows:
            self._bind(max(num_tokens, num_logits))
        step = Step.from_buffer_copy(batch.meta.step)
        step.num_logits = num_logits
        step.token_ids, step.positions = batch.token_ids.data_ptr(), batch.positions.data_ptr()
        step.logit_indices = indices.data_ptr()
        step.times = None if self.times is None else self.times.data_ptr()
        return step

    def _bind(self, num_rows: int) -> None:
        """Allocate buffers for so many rows, and point the operations to them.

        A buffer is used again by the next operation that needs one as wide, once nothing reads it.
        """
        self._max_rows = max(LEAST_ROWS, 1 << (num_rows - 1).bit_length())
        last_use: dict[Symbol, int] = {}
        for place, recorded in enumerate(self._recorded):
            last_use.update(dict.fromkeys(recorded.reads.values(), place))
        last_use[self._hidden] = len(self._recorded)
        free: list[torch.Tensor] = []
        buffers: dict[Symbol, torch.Tensor] = {}
        for place, recorded in enumerate(self._recorded):
            out = recorded.writes
            if out is not None:
                found = next((b for b in free if b.shape[1] == out.width), None)
                if found is None:
                    buffers[out] = large_floats(self._max_rows, out.width)
                else:
                    free = [buffer for buffer in free if buffer is not found]
                    buffers[out] = found
                recorded.op.out = buffers[out].data_ptr()
            for name, symbol in recorded.reads.items():
                setattr(recorded.op, name, buffers[symbol].data_ptr())
                if last_use[symbol] == place:
                    free.append(buffers[symbol])
        self._buffers = buffers
        self._plan = Plan([recorded.op for recorded in self._recorded])
