"""Decodes that share a long prefix read it once: attention in two parts, joined by their weights.

Requests with one system prompt hold the same blocks of the KV cache. Their queries together attend
to the shared blocks as to one sequence, each of them alone to the rest, and the two results are
averaged with the weights that a single softmax would have given them (as in cascade inference by
FlashInfer, and in Hydragen, arXiv:2402.05099). Knows layouts; the attention itself is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from octavo.attention.interface import BatchLayout, IntArray

MIN_SEQUENCES = 4
MIN_TOKENS = 64
"""Below these two parts cost a CPU more than they save."""

DEEPER = 4
"""How much longer each length is at which sequences are grouped."""

_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Decodes, and the full blocks that all of them begin with.

    Attributes:
        seqs: which sequences of the batch.
        block_ids: the blocks they share, in order; each sequence has at least one more.
    """

    seqs: IntArray
    block_ids: npt.NDArray[np.integer[Any]]


def find_shared_prefixes(
    layout: BatchLayout,
    block_size: int,
    rows: IntArray | None = None,
    tables: npt.NDArray[np.integer[Any]] | None = None,
    min_seqs: int = MIN_SEQUENCES,
    min_tokens: int = MIN_TOKENS,
) -> list[SharedPrefix]:
    """Prefixes worth sharing among the decodes of a batch; a sequence is in at most one.

    Sequences may share a little with many others and much with a few: they are grouped by the depth
    (`min_tokens`, `DEEPER` times that, and so on) at which most is saved in the whole batch, and
    then share what all of a group have in common.

    Args:
        layout: the step.
        block_size: tokens of a block.
        rows: [s] row of each sequence in `tables`, or below 0: not to be looked at.
        tables: [rows, most blocks] block ids. Both or neither; neither: the layout's own.
        min_seqs: fewest sequences that share, >= 2.
        min_tokens: fewest tokens they share.
    """
    if rows is None or tables is None:
        rows, tables = np.arange(len(layout.context_lens)), layout.block_tables
    decodes = np.flatnonzero((np.diff(layout.query_starts) == 1) & (rows >= 0))
    # Full blocks before the one that the new token is written into.
    num_full = layout.context_lens[decodes] // block_size

    most_saved, found = 0, None
    num_blocks = max(-(-min_tokens // block_size), 1)
    while True:
        deep = num_full >= num_blocks
        decodes, num_full = decodes[deep], num_full[deep]
        if len(decodes) < min_seqs:
            break
        last_blocks = tables[rows[decodes], num_blocks - 1]
        order = np.argsort(last_blocks, kind="stable")
        last_blocks = last_blocks[order]
        edges = np.flatnonzero(last_blocks[1:] != last_blocks[:-1]) + 1
        edges = np.concatenate(([0], edges, [len(order)]))
        starts, sizes = edges[:-1], edges[1:] - edges[:-1]
        enough = sizes >= min_seqs
        starts, sizes = starts[enough], sizes[enough]
        saved = (int(sizes.sum()) - len(sizes)) * num_blocks
        if saved == 0:
            break
        if saved > most_saved:
            most_saved, found = saved, (decodes, num_full, order, starts, sizes)
        num_blocks *= DEEPER
    if found is None:
        return []
    decodes, num_full, order, starts, sizes = found
    first_member = np.cumsum(sizes) - sizes
    members = order[np.repeat(starts - first_member, sizes) + np.arange(sizes.sum())]
    seqs = decodes[members]
    num_common = np.minimum.reduceat(num_full[members], first_member)
    width = int(num_common.max())
    leaders = tables[rows[seqs[first_member]], :width]
    differs = tables[rows[seqs], :width] != np.repeat(leaders, sizes, axis=0)
    same = np.where(differs.any(axis=1), differs.argmax(axis=1), width)
    num_common = np.minimum(num_common, np.minimum.reduceat(same, first_member))
    ends = (first_member + sizes).tolist()
    return [
        SharedPrefix(seqs[start:end], leader[:count])
        for start, end, leader, count in zip(
            first_member.tolist(), ends, leaders, num_common.tolist(), strict=True
        )
        if count * block_size >= min_tokens
    ]


class PrefixFinder:
    """`find_shared_prefixes`, step after step: what was found is kept while the decodes stay.

    It relies on what the engine promises of its blocks: one that is at the same place in two tables
    has the same tokens before it in both, so that a prefix is still shared if its last block is.

    Args:
        block_size, min_seqs, min_tokens: as of `find_shared_prefixes`.
    """

    def __init__(self, block_size: int, min_seqs: int, min_tokens: int) -> None:
        self._block_size, self._min_seqs, self._min_tokens = block_size, min_seqs, min_tokens
        self._decodes = self._rows = self._members = self._min_lens = _NONE
        self._last_places: IntArray = _NONE
        self._last_blocks: npt.NDArray[np.integer[Any]] = _NONE
        self._found: list[SharedPrefix] = []

    def find(
        self, layout: BatchLayout, rows: IntArray, tables: npt.NDArray[np.integer[Any]]
    ) -> list[SharedPrefix]:
        """See `find_shared_prefixes`. As long as it finds the same, it returns the same list."""
        decodes = np.flatnonzero(np.diff(layout.query_starts) == 1)
        rows_of_decodes = rows[decodes]
        if (
            len(decodes)
            and np.array_equal(decodes, self._decodes)
            and np.array_equal(rows_of_decodes, self._rows)
            and (layout.context_lens[self._members] >= self._min_lens).all()
            and (tables.take(self._last_places) == self._last_blocks).all()
        ):
            return self._found
        found = find_shared_prefixes(
            layout, self._block_size, rows, tables, self._min_seqs, self._min_tokens
        )
        self._decodes, self._rows, self._found = decodes, rows_of_decodes, found
        self._members = np.concatenate([_NONE, *(prefix.seqs for prefix in found)])
        num_members = [len(prefix.seqs) for prefix in found]
        num_blocks = np.array([len(prefix.block_ids) for prefix in found], np.int64)
        num_blocks = np.repeat(num_blocks, num_members)
        self._min_lens = num_blocks * self._block_size
        self._last_places = rows[self._members] * tables.shape[1] + num_blocks - 1
        self._last_blocks = tables.take(self._last_places)
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
