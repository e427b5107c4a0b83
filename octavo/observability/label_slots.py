"""Counters whose labels are not known beforehand, in the fixed cells of a board, within bounds.

A server names the labels that it counts in its own row of the board, so nobody needs a lock, and
everybody adds up equal names of all rows. A label that got a name keeps it, and a name's counters
never fall: Prometheus would take that for a restart. So which labels get names is decided when
they come:

- The first half of the names goes to whoever comes first.
- The second half only to labels that made at least one part in `num_slots` of what was counted
  here, and as much as `num_slots` additions of mean weight, while they had none. Labels without a
  name are followed with as much memory as `4 * num_slots` entries take (Space-Saving, Metwally,
  Agrawal, El Abbadi: "Efficient computation of frequent and top-k elements in data streams", 2005).
  Its error is at most a part in `4 * num_slots`, so thousands of made-up labels win no name, and a
  large one that comes late does.
- All else is counted under `other`.

With several servers there may be as many names more as there are other servers: two may name
different labels at the same moment.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.observability.board import Board, Cells

OTHER = "other"
"""What has no name of its own is counted under this one."""

UNTAGGED = "untagged"
"""Stands for the empty label, which Prometheus takes for none at all."""

MAX_NAME_BYTES = 66
"""Of a name in UTF-8; longer ones are cut."""

_BYTES_A_CELL = 6
"""A cell is a 64-bit float, which holds every integer of 48 bits exactly."""
_NAME_CELLS = MAX_NAME_BYTES // _BYTES_A_CELL
_LOOK_EVERY_S = 1.0
"""How often the names of other servers are read, at most."""


def safe_label(label: str) -> str:
    """An untrusted text as a label: printable, and `MAX_NAME_BYTES` long at most."""
    if not label:
        return UNTAGGED
    shown = label if label.isprintable() else "".join(c if c.isprintable() else "_" for c in label)
    return shown.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore")


class LabelSlots:
    """See the module.

    Args:
        board: where to count.
        num_slots: how many labels get a name, `other` not counted.
        num_values: counters of each label.
    """

    def __init__(self, board: Board, num_slots: int, num_values: int) -> None:
        self._num_slots = num_slots
        self._num_values = num_values
        self._slot_len = _NAME_CELLS + 1 + num_values
        # A row: the values of `other`, then slots of name, checksum and values.
        self._rows = board.take(num_values + num_slots * self._slot_len)
        self._own = self._rows[0]
        self._names: list[dict[int, str]] = [{} for _ in self._rows]  # by slot, of each row
        self._read_names(0)
        self._places = {name: self._values_at(slot) for slot, name in self._names[0].items()}
        self._total = 0.0
        self._num_adds = 0
        self._nameless: dict[str, float] = {}
        self._looked_at = float("-inf")

    def add(self, label: str, values: Sequence[float], weight: float) -> None:
        """Add to a label's counters.

        Args:
            label: from `safe_label`.
            values: what to add, `num_values` of them.
            weight: by which labels are compared, above 0.
        """
        self._total += weight
        self._num_adds += 1
        place = self._places.get(label)
        if place is None:
            place = self._place(label, weight)
        cells = self._own
        for index, value in enumerate(values, place):
            cells[index] += value

    def totals(self) -> dict[str, list[float]]:
        """Counters of all servers by label, in the order of their names, `other` last."""
        totals: dict[str, list[float]] = {}
        rest = [0.0] * self._num_values
        for row, cells in enumerate(self._rows):
            if row:
                self._read_names(row)
            _add_to(rest, cells, 0)
            for slot, name in self._names[row].items():
                mine = totals.setdefault(name, [0.0] * self._num_values)
                _add_to(mine, cells, self._values_at(slot))
        return {**dict(sorted(totals.items())), OTHER: rest}

    def _place(self, label: str, weight: float) -> int:
        """Where the values of a label without a name are: its new place, or that of `other`."""
        slot = len(self._names[0])
        if slot == self._num_slots or label == OTHER:
            return 0
        elsewhere = self._names_elsewhere()
        if label not in elsewhere:
            num_names = len(elsewhere.union(self._names[0].values()))
            if num_names >= self._num_slots:
                return 0
            if num_names >= self._num_slots // 2:
                if self._follow(label, weight) < self._least_weight():
                    return 0
                del self._nameless[label]
        self._write_name(slot, label)
        self._places[label] = self._values_at(slot)
        return self._places[label]

    def _least_weight(self) -> float:
        """What wins a name of the second half."""
        return self._total * max(1 / self._num_slots, self._num_slots / self._num_adds)

    def _follow(self, label: str, weight: float) -> float:
        """What the label weighs by now, as far as is known; too much rather than too little."""
        known = self._nameless
        if label not in known and len(known) == 4 * self._num_slots:
            least = min(known, key=known.__getitem__)
            known[label] = known.pop(least)
        known[label] = known.get(label, 0.0) + weight
        return known[label]

    def _names_elsewhere(self) -> set[str]:
        now = time.monotonic()
        if len(self._rows) > 1 and now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            for row in range(1, len(self._rows)):
                self._read_names(row)
        return {name for names in self._names[1:] for name in names.values()}

    def _values_at(self, slot: int) -> int:
        return self._num_values + slot * self._slot_len + _NAME_CELLS + 1

    def _write_name(self, slot: int, name: str) -> None:
        """The checksum comes last: a slot without one is free for readers."""
        data = name.encode()
        begin = self._num_values + slot * self._slot_len
        padded = data.ljust(MAX_NAME_BYTES, b"\0")
        for index in range(_NAME_CELLS):
            piece = padded[index * _BYTES_A_CELL : (index + 1) * _BYTES_A_CELL]
            self._own[begin + index] = float(int.from_bytes(piece, "little"))
        self._own[begin + _NAME_CELLS] = float(crc32(data) + 1)
        self._names[0][slot] = name

    def _read_names(self, row: int) -> None:
        """Take note of names that were added to a row; a name never changes."""
        cells, names = self._rows[row], self._names[row]
        for slot in range(len(names), self._num_slots):
            begin = self._num_values + slot * self._slot_len
            check = int(cells[begin + _NAME_CELLS])
            if not check:
                return
            pieces = (int(cells[begin + index]) for index in range(_NAME_CELLS))
            data = b"".join(piece.to_bytes(_BYTES_A_CELL, "little") for piece in pieces)
            data = data.rstrip(b"\0")
            if crc32(data) + 1 != check:
                return  # it is being written
            names[slot] = data.decode()


def _add_to(sums: list[float], cells: Cells, begin: int) -> None:
    for index in range(len(sums)):
        sums[index] += cells[begin + index]
