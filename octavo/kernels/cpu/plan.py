"""Steps as lists of native operations: what src/plan.h describes, for Python.

Knows structures and pointers, no layers. Buffers are float32, rows one behind the other; whoever
makes an `Op` keeps alive what it points to.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import TYPE_CHECKING

import torch

from octavo.kernels.cpu import library

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


class Kind(IntEnum):
    """What an operation does; see src/plan.h."""

    EMBED = 0
    NORM = 1
    ADD_NORM = 2
    LINEAR = 3
    ROTATE = 4
    ATTEND = 5
    GATE = 6
    SELECT = 7
    SOFT_CAP = 8
    ARGMAX = 9
    DENSE = 10


TOKENS, LOGITS = 0, 1
"""Scopes: an operation's rows are the step's tokens, or those whose logits are wanted."""

ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "gelu": 2}
"""Of `Kind.GATE`."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""Of an embedding's rows and of plain weights (but int8), and of a cache."""

PACKED = 3
"""In the place of a dtype: an embedding's rows are packed blocks."""

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class Op(ctypes.Structure):
    """One operation: `struct Op`. A null `input` or `out` is the step's logits."""

    _fields_ = (
        ("kind", _INT),
        ("scope", _INT),
        ("dtype", _INT),
        ("option", _INT),
        ("input", _POINTER),
        ("out", _POINTER),
        ("out2", _POINTER),
        ("weight", _POINTER),
        ("weight2", _POINTER),
        ("weight3", _POINTER),
        ("width", _LONG),
        ("in_width", _LONG),
        ("num_rows", _LONG),
        ("cache", _POINTER),
        ("num_heads", _INT),
        ("num_kv_heads", _INT),
        ("head_dim", _INT),
        ("block_size", _INT),
        ("window", _LONG),
        ("eps", _FLOAT),
        ("scale", _FLOAT),
        ("soft_cap", _FLOAT),
        ("unused", _FLOAT),
    )


class Step(ctypes.Structure):
    """What is new in a step: `struct Step`."""

    _fields_ = (
        ("num_tokens", _LONG),
        ("num_logits", _LONG),
        ("num_seqs", _LONG),
        ("table_width", _LONG),
        ("token_ids", _POINTER),
        ("positions", _POINTER),
        ("slots", _POINTER),
        ("logit_indices", _POINTER),
        ("query_starts", _POINTER),
        ("context_lens", _POINTER),
        ("block_tables", _POINTER),
        ("logits", _POINTER),
        ("argmax", _POINTER),
        ("times", _POINTER),
        ("error", _LONG),
    )


class Plan:
    """Operations in order, and the tensors that they point to."""

    def __init__(self, ops: Sequence[Op], keep: Sequence[object] = ()) -> None:
        self.ops = (Op * len(ops))(*ops)
        self._keep = list(keep)

    def run(self, step: Step, count: int | None = None) -> None:
        """Run the first `count` operations, or all of them.

        Raises:
            IndexError: a token is beyond the embedding's rows.
            MemoryError: there is none for what the threads need themselves.
        """
        num = len(self.ops) if count is None else count
        library().octavo_run(self.ops, num, ctypes.byref(step))
        if step.error == 1:
            raise IndexError("a token is beyond the embedding's rows")
        if step.error:
            raise MemoryError("no memory for a step's attention")


def address(array: NDArray[np.int64]) -> int:
    """Where a C-contiguous array of int64 lies."""
    assert array.dtype == "int64"
    assert array.flags.c_contiguous
    return array.ctypes.data


def cache_bytes(dtype: torch.dtype, num_heads: int, head_dim: int, block_size: int) -> int:
    """Bytes of one block of one layer's cache: `cache_unit_bytes` for each of its KV heads."""
    numbers = 2 * head_dim * block_size
    own = numbers + 8 * block_size if dtype == torch.int8 else numbers * dtype.itemsize
    return num_heads * own
