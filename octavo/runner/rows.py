"""The device's table of requests: tokens and blocks of each row. Numpy on the host.

Row numbers come from the scheduler; what a row held before is forgotten when it is initialised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from octavo.types import RowInit, StepPlan


class RowTable:
    """Rows 0..max_num_seqs - 1.

    Attributes:
        token_ids: [rows, max_model_len + 1] int32; pages become resident when they are written.
        num_tokens: [rows] known tokens, the prompt's and sampled ones.
        block_tables: [rows, most blocks] int32.
        num_blocks: [rows].
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        most_blocks = -(-(max_model_len + 1) // block_size)
        self.token_ids = np.zeros((max_num_seqs, max_model_len + 1), dtype=np.int32)
        self.num_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.block_tables = np.zeros((max_num_seqs, most_blocks), dtype=np.int32)
        self.num_blocks = np.zeros(max_num_seqs, dtype=np.int64)

    def apply(self, plan: StepPlan) -> None:
        """Take the plan's new rows and blocks, before its batch is built."""
        for init in plan.new_rows:
            self._init(init)
        for row, blocks in zip(plan.rows, plan.new_block_ids, strict=True):
            if blocks:
                start = self.num_blocks[row]
                self.block_tables[row, start : start + len(blocks)] = blocks
                self.num_blocks[row] = start + len(blocks)

    def append(self, rows: npt.NDArray[np.int64], token_ids: npt.NDArray[np.int64]) -> None:
        """Add one sampled token to each of `rows` (which are distinct)."""
        self.token_ids[rows, self.num_tokens[rows]] = token_ids
        self.num_tokens[rows] += 1

    def _init(self, init: RowInit) -> None:
        num_tokens = len(init.token_ids)
        self.token_ids[init.row, :num_tokens] = init.token_ids
        self.num_tokens[init.row] = num_tokens
        self.num_blocks[init.row] = 0
