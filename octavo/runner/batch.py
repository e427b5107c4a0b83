"""From the host's plan to the device's batch: the one place where they meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo.attention.interface import AttentionBackend, AttentionSpec, BatchLayout
from octavo.layers.batch import ForwardBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.runner.rows import RowTable
    from octavo.types import StepPlan


def build_batch(
    plan: StepPlan,
    table: RowTable,
    backend: AttentionBackend,
    spec: AttentionSpec,
    kv_caches: Sequence[torch.Tensor],
) -> ForwardBatch:
    """The ragged batch of a step that is not empty.

    Args:
        plan: already applied to `table`.
        table: tokens and blocks of each row.
        backend: plans the attention.
        spec: the model's attention.
        kv_caches: one per layer.
    """
    rows = np.asarray(plan.rows, dtype=np.int64)
    query_lens = np.asarray(plan.num_new_tokens, dtype=np.int64)
    context_lens = np.asarray(plan.num_computed_tokens, dtype=np.int64)
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(query_lens, out=starts[1:])

    seq_of_token = np.repeat(np.arange(len(rows)), query_lens)
    positions = (context_lens - starts[:-1])[seq_of_token] + np.arange(starts[-1])
    token_ids = table.token_ids[rows[seq_of_token], positions].astype(np.int64)
    logit_indices = (starts[1:] - 1)[np.asarray(plan.samples, dtype=bool)]

    most_blocks = int(-(-(context_lens + query_lens).max() // spec.block_size))
    layout = BatchLayout(
        query_starts=starts,
        context_lens=context_lens,
        block_tables=table.block_tables[rows, :most_blocks].astype(np.int64),
    )
    device = spec.device
    return ForwardBatch(
        token_ids=torch.from_numpy(token_ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        logit_indices=torch.from_numpy(logit_indices).to(device),
        backend=backend,
        meta=backend.plan(spec, layout),
        kv_caches=kv_caches,
    )
