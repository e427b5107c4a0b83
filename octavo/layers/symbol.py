"""Rows of a step that is written down instead of computed.

A model's forward, called with symbols, runs as it stands: each layer that knows symbols tells the
recorder what it would do, and gets a symbol for the result. What else is tried on one ends the
recording. Knows no kernel; `runner/native_plan.py` is a recorder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import torch

if TYPE_CHECKING:
    from octavo.layers.embedding import Embedding
    from octavo.layers.linear import Linear
    from octavo.layers.norm import RMSNorm


class CannotRecordError(Exception):
    """The model does something that the recorder does not know; the message says what."""


class Recorder(Protocol):
    """Writes operations down. All symbols are [rows, width]."""

    def embed(self, layer: Embedding, token_ids: Symbol) -> Symbol:
        """The embedding's rows."""
        ...

    def norm(self, layer: RMSNorm, x: Symbol) -> Symbol:
        """`RMSNorm.forward`."""
        ...

    def add_norm(self, layer: RMSNorm, x: Symbol, residual: Symbol) -> Symbol:
        """`RMSNorm.add`: the norm of the sum, which takes `residual`'s place."""
        ...

    def linear(self, layer: Linear, x: Symbol) -> Symbol:
        """A projection."""
        ...

    def gate(self, x: Symbol, activation: str) -> Symbol:
        """`activation(first half of x) * second half`."""
        ...

    def select(self, x: Symbol) -> Symbol:
        """Rows whose logits are wanted."""
        ...


class Symbol:
    """What stands for a tensor [rows, width].

    Attributes:
        recorder: where it is from.
        width: of a row.
        is_selected: the rows are those whose logits are wanted, not all tokens.
    """

    device = torch.device("cpu")

    def __init__(self, recorder: Recorder, width: int, *, is_selected: bool = False) -> None:
        self.recorder, self.width, self.is_selected = recorder, width, is_selected

    @property
    def shape(self) -> tuple[int, int]:
        """-1 rows: how many there are is not known."""
        return -1, self.width

    def reshape(self, *shape: int) -> Symbol:
        """Itself: heads lie side by side in a row."""
        assert shape == (-1, -1)
        return self

    def index_select(self, dim: int, indices: Any) -> Symbol:
        """See `ForwardBatch.select`, the one who calls it."""
        assert dim == 0
        assert isinstance(indices, Symbol)
        return self.recorder.select(self)

    def __getattr__(self, name: str) -> NoReturn:
        raise CannotRecordError(f"a layer uses `{name}` of its input")

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any, **__: Any) -> NoReturn:
        raise CannotRecordError(f"a layer calls {getattr(function, '__name__', function)}")
