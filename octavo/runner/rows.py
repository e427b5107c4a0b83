"""The device's table of requests: tokens and blocks of each row. Numpy on the host.

Row numbers come from the scheduler; what a row held before is forgotten when it is initialised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from octavo.types import RowInit, StepPlan

    Table = npt.NDArray[np.int32]

ON_DEVICE = -1
"""In the place of a token that was sampled and has not been told to the host."""


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
        most_blocks = -(-most_blocks // 4) * 4  # rows at multiples of 16 bytes, for kernels
        self.token_ids = np.zeros((max_num_seqs, max_model_len + 1), dtype=np.int32)
        self.num_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.block_tables = np.zeros((max_num_seqs, most_blocks), dtype=np.int32)
        self.num_blocks = np.zeros(max_num_seqs, dtype=np.int64)

    def apply(self, plan: StepPlan) -> Table:
        """Take the plan's new rows and blocks, before its batch is built.

        Returns:
            [2, m] what changed in `block_tables`: flat places, and the block ids there.
        """
        for init in plan.new_rows:
            self._init(init)
        places: list[int] = []
        block_ids: list[int] = []
        width = self.block_tables.shape[1]
        for row, blocks in zip(plan.rows, plan.new_block_ids, strict=True):
            if blocks:
                start, num_new = int(self.num_blocks[row]), len(blocks)
                self.block_tables[row, start : start + num_new] = blocks
                self.num_blocks[row] = start + num_new
                first = row * width + start
                places.extend(range(first, first + num_new))
                block_ids.extend(blocks)
        return np.array((places, block_ids), np.int32)

    def append(
        self, rows: npt.NDArray[np.int64], token_ids: npt.NDArray[np.int64] | int = ON_DEVICE
    ) -> None:
        """Add one sampled token to each of `rows` (which are distinct)."""
        self.token_ids[rows, self.num_tokens[rows]] = token_ids
        self.num_tokens[rows] += 1

    def _init(self, init: RowInit) -> None:
        num_tokens = len(init.token_ids)
        self.token_ids[init.row, :num_tokens] = init.token_ids
        self.num_tokens[init.row] = num_tokens
        self.num_blocks[init.row] = 0
