"""What an attention backend is: the seam between models and kernels.

Knows nothing of requests, schedulers or models. A backend turns a host-side `BatchLayout` into
metadata of its own once per step, and then computes one layer after another with it.

Shape suffixes here and in the backends:
    t: tokens of the batch, ragged, all sequences one behind the other
    s: sequences in the batch; h: query heads; k: KV heads; d: head dimension
    b: KV blocks in the pool; p: tokens per block (page)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What a model asks of its attention, the same for all layers but for the window.

    Attributes:
        num_heads, num_kv_heads: per device; the first is a multiple of the second.
        head_dim: of queries, keys and values.
        dtype: of queries, keys and values.
        device: where they live.
        block_size: tokens per KV block.
        windows: the sliding windows that layers use, None for full attention.
        soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`, or None.
        cache_dtype: of keys and values in the cache; None: `dtype`.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    block_size: int
    windows: frozenset[int | None]
    soft_cap: float | None = None
    cache_dtype: torch.dtype | None = None

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of keys and values in the cache."""
        return self.cache_dtype or self.dtype


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """What one layer asks: `scale` of the logits and its sliding `window` (None: all positions).

    With a window w, position i sees positions i - w + 1 .. i.
    """

    scale: float
    window: int | None = None


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Where each sequence of a step lies, on the host.

    Attributes:
        query_starts: [s + 1] first token of each sequence in the batch, and the total.
        context_lens: [s] tokens in the cache before this step.
        block_tables: [s, most blocks] block ids; entries past a sequence's last block are unread.
            Has no columns where the device holds the tables itself (`StepTensors`).
    """

    query_starts: IntArray
    context_lens: IntArray
    block_tables: IntArray

    @property
    def query_lens(self) -> IntArray:
        """[s] new tokens of each sequence, >= 1."""
        return np.diff(self.query_starts)

    @property
    def seq_lens(self) -> IntArray:
        """[s] tokens of each sequence after this step."""
        return self.context_lens + self.query_lens

    @property
    def seq_of_token(self) -> IntArray:
        """[t] the sequence that each token belongs to."""
        return np.repeat(np.arange(len(self.context_lens)), self.query_lens)

    @property
    def positions(self) -> IntArray:
        """[t] place of each token in its sequence."""
        offsets = self.context_lens - self.query_starts[:-1]
        positions: IntArray = offsets[self.seq_of_token] + np.arange(self.query_starts[-1])
        return positions

    def slots(self, block_size: int) -> IntArray:
        """[t] place of each token in the pool: its block's first, and its place in the block."""
        positions = self.positions
        blocks = self.block_tables[self.seq_of_token, positions // block_size]
        slots: IntArray = blocks * block_size + positions % block_size
        return slots


@dataclass(frozen=True, slots=True)
class StepTensors:
    """What the tokens of a step are, on the device; the same for every layer.

    Attributes:
        positions: [t] int32, place of each token in its sequence.
        rows: [t] int32, row of its sequence in `block_tables`; below 0: padding, to be left alone.
        block_tables: [rows, most blocks] int32 block ids.
    """

    positions: torch.Tensor
    rows: torch.Tensor
    block_tables: torch.Tensor


@dataclass(frozen=True, slots=True)
class RotaryArgs:
    """What becomes of one layer's queries and keys before they meet: the same in every step.

    Attributes:
        table: [longest sequence, d] float32, cosines of each position, then sines; complete unless
            the backend `extends_tables`.
        q_norm, k_norm: [d] weights of an RMS norm over each head before the rotation, or None.
        eps, offset: of these norms: x / sqrt(mean(x^2) + eps) * (offset + weight).
    """

    table: torch.Tensor
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    eps: float = 0.0
    offset: float = 0.0


class AttentionBackend(Protocol):
    """Paged attention over a ragged batch.

    Attributes:
        name: what `--attention-backend` takes.
        fuses_rotary: it is a `RotatingBackend`, and layers hand their projections over as they are.
    """

    name: str
    fuses_rotary: bool

    def why_not(self, spec: AttentionSpec) -> str | None:
        """Why this backend cannot serve `spec`, or None when it can."""
        ...

    def allocate(self, spec: AttentionSpec, num_blocks: int) -> torch.Tensor:
        """One layer's KV cache for `num_blocks` blocks, in the layout that the backend likes."""
        ...

    def bytes_per_block(self, spec: AttentionSpec) -> int:
        """Bytes that one block takes in one layer."""
        ...

    def plan(self, spec: AttentionSpec, layout: BatchLayout) -> Any:
        """The step's metadata on the device: made once, used by every layer."""
        ...

    def forward(
        self,
        layer: LayerAttention,
        q_thd: torch.Tensor,
        k_tkd: torch.Tensor,
        v_tkd: torch.Tensor,
        cache: torch.Tensor,
        meta: Any,
    ) -> torch.Tensor:
        """`write`, then `attend`."""
        ...

    def write(
        self, k_tkd: torch.Tensor, v_tkd: torch.Tensor, cache: torch.Tensor, meta: Any
    ) -> None:
        """Store keys and values in `cache`: at the batch's own slots, and nowhere else."""
        ...

    def attend(
        self, layer: LayerAttention, q_thd: torch.Tensor, cache: torch.Tensor, meta: Any
    ) -> torch.Tensor:
        """[t, h, d]: each query with the keys and values of its sequence, its own included.

        Those of the batch's tokens must have been written; `cache` stays as it is.
        """
        ...


class RotatingBackend(AttentionBackend, Protocol):
    """A backend that turns queries and keys itself, in one pass with the writing of the cache.

    Attributes:
        extends_tables: it has `Rotary.extend` fill in a table's rows before a step needs them.
    """

    extends_tables: bool

    def rotate_and_write(
        self, qkv: torch.Tensor, args: RotaryArgs, cache: torch.Tensor, meta: Any
    ) -> torch.Tensor:
        """Normalize, rotate, write keys and values as `write` does, and return queries [t, h, d].

        Args:
            qkv: [t, (h + 2k) * d], queries, keys and values side by side; unchanged.
            args: the layer's norms and angles; positions are in `meta`.
            cache: as in `write`.
            meta: the step's.
        """
        ...
