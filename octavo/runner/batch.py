"""From the host's plan to the device's batch: the one place where they meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo.attention.interface import AttentionBackend, AttentionSpec, BatchLayout
from octavo.layers.batch import ForwardBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.attention.interface import IntArray
    from octavo.runner.rows import RowTable
    from octavo.types import StepPlan


@dataclass(frozen=True, slots=True)
class HostBatch:
    """A step that is not empty, in numbers.

    Attributes:
        rows: [s] the scheduled rows.
        token_ids: [t] int32; `rows.ON_DEVICE` where only the device knows the token.
        rows_of_token: [t].
        positions: [t] place of each token in its sequence.
        logit_indices: [n] tokens whose logits are wanted.
        sampled_rows: [n] rows that get a token.
        layout: for the attention.
    """

    rows: IntArray
    token_ids: np.ndarray
    rows_of_token: IntArray
    positions: IntArray
    logit_indices: IntArray
    sampled_rows: IntArray
    layout: BatchLayout

    @property
    def is_decode(self) -> bool:
        """Whether each row has one token, and each token wants logits: what graphs are made for."""
        return len(self.token_ids) == len(self.rows) == len(self.logit_indices)


def with_more_logits(host: HostBatch, indices: IntArray) -> HostBatch:
    """The same batch, and hidden states of more tokens behind those of the sampled rows."""
    return replace(host, logit_indices=np.concatenate((host.logit_indices, indices)))


def lay_out(plan: StepPlan, table: RowTable, block_size: int, *, with_tables: bool) -> HostBatch:
    """The ragged batch on the host.

    Args:
        plan: already applied to `table`.
        table: tokens and blocks of each row.
        block_size: tokens per block.
        with_tables: copy the rows' block tables into the layout.
    """
    rows = np.asarray(plan.rows, dtype=np.int64)
    query_lens = np.asarray(plan.num_new_tokens, dtype=np.int64)
    context_lens = np.asarray(plan.num_computed_tokens, dtype=np.int64)
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(query_lens, out=starts[1:])
    samples = np.asarray(plan.samples, dtype=bool)
    if starts[-1] == len(rows):
        rows_of_token, positions = rows, context_lens
    else:
        seq_of_token = np.repeat(np.arange(len(rows)), query_lens)
        rows_of_token = rows[seq_of_token]
        positions = (context_lens - starts[:-1])[seq_of_token] + np.arange(starts[-1])
    most_blocks = int(-(-(context_lens + query_lens).max() // block_size)) if with_tables else 0
    return HostBatch(
        rows=rows,
        token_ids=table.token_ids[rows_of_token, positions],
        rows_of_token=rows_of_token,
        positions=positions,
        logit_indices=(starts[1:] - 1)[samples],
        sampled_rows=rows[samples],
        layout=BatchLayout(
            query_starts=starts,
            context_lens=context_lens,
            block_tables=table.block_tables[rows, :most_blocks].astype(np.int64),
        ),
    )


def build_batch(
    host: HostBatch,
    backend: AttentionBackend,
    spec: AttentionSpec,
    kv_caches: Sequence[torch.Tensor],
) -> ForwardBatch:
    """The batch on the device, for a backend that plans a step by itself.

    Args:
        host: with block tables in its layout and all tokens known.
        backend: plans the attention.
        spec: the model's attention.
        kv_caches: one per layer.
    """
    device = spec.device
    return ForwardBatch(
        token_ids=torch.from_numpy(host.token_ids.astype(np.int64)).to(device),
        positions=torch.from_numpy(host.positions).to(device),
        logit_indices=torch.from_numpy(host.logit_indices).to(device),
        backend=backend,
        meta=backend.plan(spec, host.layout),
        kv_caches=kv_caches,
    )
