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
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    block_size: int
    windows: frozenset[int | None]
    soft_cap: float | None = None


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


class AttentionBackend(Protocol):
    """Paged attention over a ragged batch.

    `name` is what `--attention-backend` takes.
    """

    name: str

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
        """Write the new keys and values into `cache`, attend, return [t, h, d].

        `cache` is changed at the batch's own slots and nowhere else.
        """
        ...
