"""A text that each server writes into its row of a board, for all others to read.

Nobody needs a lock: the checksum is written last, and a reader that comes in between keeps what it
read before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from octavo.observability.board import Board

_ITEM_BYTES = 8
_HEAD = 2
"""Cells before the text: its length, and its checksum plus 1; 0: there is none."""


class BoardText:
    """See the module.

    Args:
        board: where to write; the servers of one all take their texts in the same order.
        max_bytes: of a text.
    """

    def __init__(self, board: Board, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._rows = board.take(_HEAD + -(-max_bytes // _ITEM_BYTES))
        self._others = [b""] * (len(self._rows) - 1)

    @property
    def has_readers(self) -> bool:
        """Whether there are other servers."""
        return len(self._rows) > 1

    def write(self, text: bytes) -> None:
        """Put a text, `max_bytes` long at most, in the place of the one before."""
        assert len(text) <= self.max_bytes
        row = self._rows[0]
        if isinstance(row, list):  # a row of our own, which nobody reads
            return
        row[1] = 0.0
        row.cast("B")[_HEAD * _ITEM_BYTES : _HEAD * _ITEM_BYTES + len(text)] = text
        row[0] = float(len(text))
        row[1] = float(crc32(text) + 1)

    def others(self) -> list[bytes]:
        """The other servers' texts; empty where there is none."""
        for index, row in enumerate(self._rows[1:]):
            assert not isinstance(row, list)
            length, check = int(row[0]), int(row[1])
            if not check or not 0 <= length <= self.max_bytes:
                continue
            text = bytes(row.cast("B")[_HEAD * _ITEM_BYTES : _HEAD * _ITEM_BYTES + length])
            if crc32(text) + 1 == check:  # else it is being written
                self._others[index] = text
        return list(self._others)
