"""A step's attention on its way to the device: planned on the host, bound to what was sent.

Knows tensors and plans; no kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.attention.interface import AttentionSpec, StepTensors
    from octavo.attention.tunings import Kind
    from octavo.attention.work import Table


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch in a step. `merges` has nothing where parts wait for the next launch's."""

    kind: Kind
    items: torch.Tensor
    members: torch.Tensor
    merges: torch.Tensor


@dataclass(frozen=True, slots=True)
class TritonMetadata:
    """A step on the device.

    Attributes:
        step: what each token is.
        launches: for each window.
        parts: float32 scratch [k, rows, d] of divided tiles, used by one layer after the other.
        part_weights: [k, rows].
        arrivals: [k, rows] int32, zero between launches: parts of the tile whose first row it is.
        tickets: [1] int32, zero between launches: items that were drawn.
    """

    spec: AttentionSpec
    step: StepTensors
    launches: dict[int | None, list[Launch]]
    parts: torch.Tensor
    part_weights: torch.Tensor
    arrivals: torch.Tensor
    tickets: torch.Tensor


class Scratch:
    """Memory for parts, kept for all who come: they run one after the other, on one stream."""

    def __init__(self) -> None:
        self._parts: tuple[torch.Tensor, ...] | None = None

    def take(self, spec: AttentionSpec, num_rows: int) -> tuple[torch.Tensor, ...]:
        """The last four of `TritonMetadata`, with `num_rows` or more."""
        if self._parts is None or self._parts[0].shape[1] < num_rows:
            shape = (spec.num_kv_heads, num_rows, spec.head_dim)
            parts = torch.empty(shape, dtype=torch.float32, device=spec.device)
            weights = torch.empty(shape[:2], dtype=torch.float32, device=spec.device)
            arrivals = torch.zeros(shape[:2], dtype=torch.int32, device=spec.device)
            tickets = torch.zeros(1, dtype=torch.int32, device=spec.device)
            self._parts = parts, weights, arrivals, tickets
        return self._parts


@dataclass(frozen=True, slots=True)
class PlannedWork:
    """A step's work on the host: integers to be sent, and what becomes of them on the device.

    Attributes:
        sections: in the order in which `bind` wants them.
        kinds: for each two of them.
        num_part_rows: rows of scratch that they need, per KV head.
        scratch: of all graphs, if this may be captured in one.
    """

    spec: AttentionSpec
    sections: list[Table]
    kinds: list[Kind]
    num_part_rows: int
    scratch: Scratch | None

    def bind(self, views: Sequence[torch.Tensor], step: StepTensors) -> TritonMetadata:
        """The metadata over `views`, which hold the sections on the device."""
        spec = self.spec
        launches: dict[int | None, list[Launch]] = {window: [] for window in spec.windows}
        for i, kind in enumerate(self.kinds):
            items, others = views[2 * i : 2 * i + 2]
            if kind.merge_tokens:
                launch = Launch(kind, items, items, others)
            else:
                launch = Launch(kind, items, others, items[:0])
            launches[kind.window].append(launch)
        scratch = self.scratch or Scratch()
        return TritonMetadata(spec, step, launches, *scratch.take(spec, self.num_part_rows))
