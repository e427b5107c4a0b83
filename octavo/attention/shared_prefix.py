"""Decodes that share a long prefix read it once: attention in two parts, joined by their weights.

Requests with one system prompt hold the same blocks of the KV cache. Their queries together attend
to the shared blocks as to one sequence, each of them alone to the rest, and the two results are
averaged with the weights that a single softmax would have given them (as in cascade inference by
FlashInfer, and in Hydragen, arXiv:2402.05099). Knows layouts; the attention itself is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from octavo.attention.interface import BatchLayout, IntArray

MIN_SEQUENCES = 4
MIN_TOKENS = 64
"""Below these two parts cost more than they save."""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Decodes, and the full blocks that all of them begin with.

    Attributes:
        seqs: which sequences of the batch.
        block_ids: the blocks they share, in order; each sequence has at least one more.
    """

    seqs: IntArray
    block_ids: IntArray


def find_shared_prefixes(layout: BatchLayout, block_size: int) -> list[SharedPrefix]:
    """Prefixes worth sharing among the decodes of a batch; a sequence is in at most one."""
    decodes = np.flatnonzero(layout.query_lens == 1)
    if len(decodes) < MIN_SEQUENCES:
        return []
    # Full blocks before the one that the new token is written into.
    num_full = layout.context_lens[decodes] // block_size
    first_blocks = layout.block_tables[decodes, 0]
    found = []
    for block in np.unique(first_blocks[num_full > 0]):
        members = (first_blocks == block) & (num_full > 0)
        seqs = decodes[members]
        if len(seqs) < MIN_SEQUENCES:
            continue
        tables = layout.block_tables[seqs, : int(num_full[members].min())]
        differs = (tables != tables[0]).any(axis=0)
        num_shared = int(differs.argmax()) if differs.any() else len(differs)
        if num_shared * block_size >= MIN_TOKENS:
            found.append(SharedPrefix(seqs, tables[0, :num_shared]))
    return found


def join(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> torch.Tensor:
    """Attention over two sets of keys from the attention over each.

    Args:
        out_a: [n, h, d], attention over the first set.
        lse_a: [n, h] float32, log of the sum of the exponentials of its logits.
        out_b: as `out_a`, over the second set.
        lse_b: as `lse_a`.

    Returns:
        [n, h, d] in the dtype of `out_a`.
    """
    weight_b = torch.sigmoid(lse_b - lse_a).unsqueeze(-1)
    return torch.lerp(out_a.float(), out_b.float(), weight_b).to(out_a.dtype)
