"""What captured steps read: one buffer on the device, filled by one copy from pinned memory.

Knows where each number of a step goes. Knows neither models nor graphs.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

from octavo.runner.places import make_slot, place_on_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.attention.sections import Section
    from octavo.attention.work import StepShape
    from octavo.runner.batch import HostBatch
    from octavo.runner.places import Places, Slot
    from octavo.runner.rows import RowTable
    from octavo.runner.sampler import SamplerRows

NUM_SLOTS = 4
"""Steps in flight that the host's pinned memory has room for; two are, when it runs ahead."""


class CapturedInputs:
    """The buffer, and a ring of slots on the host.

    Args:
        table, sampler: whose rows the steps compute.
        num_integers: of the largest step.
        num_rows: most rows that a step samples.
        device: where the buffer is.

    Attributes:
        slots: the one that was used longest ago comes first.
    """

    def __init__(
        self,
        table: RowTable,
        sampler: SamplerRows,
        num_integers: int,
        num_rows: int,
        device: torch.device,
    ) -> None:
        self._table, self._sampler = table, sampler
        self._on_device = torch.zeros(num_integers, dtype=torch.int32, device=device)
        self.slots = deque(make_slot(num_integers, num_rows, device) for _ in range(NUM_SLOTS))

    def places_of(self, shape: StepShape, tables: Sequence[tuple[int, ...]]) -> Places:
        """Where a step of the shape finds its numbers on the device."""
        return place_on_device(self._on_device, shape, tables)

    def next_slot(self) -> Slot:
        """A slot for the next step, once the device is done with the last step that used it."""
        slot = self.slots[0]
        self.slots.rotate(-1)
        if slot.end is not None:
            slot.end.synchronize()
        return slot

    def send(
        self,
        slot: Slot,
        shape: StepShape,
        tables: Sequence[tuple[int, ...]],
        host: HostBatch,
        updates: Section,
        sections: Sequence[Section],
    ) -> None:
        """Fill in a step's places on the host, and copy them to the device.

        The slot's memory holds what other shapes left there, so padding is written too.

        Args:
            slot: which nothing in flight uses.
            shape: that the step is padded to.
            tables: shapes of the attention's tables.
            host: the step, which fits into `shape`.
            updates: [2, u] changes of block tables, u <= `NUM_UPDATES`.
            sections: the attention's tables.
        """
        to, filled = slot.places_of(shape, tables)
        num_tokens, rows = len(host.token_ids), host.sampled_rows
        to.token_ids[:num_tokens] = host.token_ids
        to.rows[:num_tokens] = host.rows_of_token
        to.rows[num_tokens:] = -1
        to.positions[:num_tokens] = host.positions
        to.positions[num_tokens:] = 0
        num_rows, num_updates = len(rows), updates.shape[1]
        if not shape.is_decode:
            to.logit_indices[:num_rows] = host.logit_indices
            to.logit_indices[num_rows:] = 0
        to.temperature[:num_rows] = self._sampler.temperature[rows]
        to.temperature[num_rows:] = 0.0
        to.seeds[:, :num_rows] = self._sampler.seed_words[:, rows]
        to.lengths[:num_rows] = self._table.num_tokens[rows]
        to.sampled_rows[:num_rows] = rows
        to.sampled_rows[num_rows:] = -1
        to.updates[:, :num_updates] = updates
        to.updates[0, num_updates:] = -1
        for place, table in zip(to.tables, sections, strict=True):
            place[...] = table
        self._on_device[: len(filled)].copy_(filled, non_blocking=True)
