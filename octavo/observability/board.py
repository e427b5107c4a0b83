"""Numbers that several API servers share: a row of cells for each, which it alone writes.

Everybody adds up all rows when asked, so that any server tells of all of them without asking the
others. Cells are aligned 8-byte floats: a store is whole on the machines we run on, and nobody
needs a lock. A reading of several cells is no snapshot: it may miss what happens meanwhile.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from typing import TypeAlias

    Cells: TypeAlias = memoryview[float] | list[float]

ROW_LEN = 4096
"""Cells of a row; untouched ones take no memory."""

_ITEM_BYTES = 8
_NUM_GAUGES = 3


def private_cells(num: int) -> Cells:
    """So many zeros that nobody shares; a list is the fastest to count in."""
    return [0.0] * num


class Gauge:
    """A number that goes up and down.

    Args:
        cells: one cell per server, ours first; None: there is only us.
    """

    __slots__ = ("_cells",)

    def __init__(self, cells: list[Cells] | None = None) -> None:
        self._cells = [private_cells(1)] if cells is None else cells

    @property
    def value(self) -> int:
        """Ours."""
        return int(self._cells[0][0])

    @value.setter
    def value(self, value: int) -> None:
        self._cells[0][0] = value

    @property
    def total(self) -> int:
        """The sum over all servers."""
        return int(sum(cell[0] for cell in self._cells))

    @property
    def others(self) -> list[int]:
        """The other servers' values."""
        return [int(cell[0]) for cell in self._cells[1:]]


class Board:
    """See the module. Make it with `private`, `shared` or `attached`.

    A server that is started anew takes up the row of the one before it: its counters go on, and
    its gauges were set to zero by `forget`.

    Attributes:
        num_rows: how many servers share it.
        connections: open connections.
        open_requests: requests that are being worked on.
        unread_requests: requests sent to the engine that it has not told about yet.
    """

    def __init__(
        self, memory: memoryview[float] | None, num_rows: int, own: int, fd: int | None = None
    ) -> None:
        rows = (
            []
            if memory is None
            else [memory[i * ROW_LEN : (i + 1) * ROW_LEN] for i in range(num_rows)]
        )
        self.num_rows = num_rows
        self.fd = fd
        self._by_index = rows
        self._rows = rows[own : own + 1] + rows[:own] + rows[own + 1 :]
        self._num_taken = 0
        self.connections = Gauge(self.take(1))
        self.open_requests = Gauge(self.take(1))
        self.unread_requests = Gauge(self.take(1))
        assert self._num_taken == _NUM_GAUGES
        self._restarts = self.take(1)

    @classmethod
    def private(cls) -> Self:
        """One row, which nobody shares."""
        return cls(None, 1, 0)

    @classmethod
    def shared(cls, num_rows: int) -> Self:
        """A new one in memory that processes which inherit `fd` can attach; for their parent."""
        with tempfile.TemporaryFile(prefix="octavo-board-") as file:
            file.truncate(_ITEM_BYTES * ROW_LEN * num_rows)
            return cls.attached(os.dup(file.fileno()), num_rows, 0)

    @classmethod
    def attached(cls, fd: int, num_rows: int, own: int) -> Self:
        """The one behind a descriptor, with `own` as our row."""
        memory = memoryview(mmap.mmap(fd, _ITEM_BYTES * ROW_LEN * num_rows)).cast("d")
        return cls(memory, num_rows, own, fd)

    @property
    def num_restarts(self) -> int:
        """Servers that were started in the place of one that ended."""
        return int(sum(cells[0] for cells in self._restarts))

    def take(self, num: int) -> list[Cells]:
        """The next `num` cells of every row, ours first; servers must take in the same order."""
        begin, self._num_taken = self._num_taken, self._num_taken + num
        assert self._num_taken <= ROW_LEN
        if not self._rows:
            return [private_cells(num)]
        return [row[begin : self._num_taken] for row in self._rows]

    def forget(self, index: int) -> None:
        """Note that the server of a row has ended, so that it has nothing open."""
        for cell in range(_NUM_GAUGES):
            self._by_index[index][cell] = 0.0

    def count_restart(self, index: int) -> None:
        """Note that the server of a row was started anew."""
        self._by_index[index][_NUM_GAUGES] += 1.0
