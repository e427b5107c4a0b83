"""Where everything that a captured step reads lies: one run of 32-bit integers, on both sides.

The host fills its copy in place, pinned memory used in a ring, and one copy brings all of it to the
device, where a graph's kernels have the same places. Nothing is allocated while steps run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.attention.sections import ALIGN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.attention.sections import Section
    from octavo.attention.work import StepShape

NUM_UPDATES = 256
"""Changes of block tables that a captured step has room for."""


@dataclass(frozen=True, slots=True)
class Places:
    """Arrays of the host or tensors of the device, for t tokens, n sampled rows.

    Attributes:
        token_ids, rows, positions: [t] int32.
        logit_indices: [n] int32, or empty where every token wants logits.
        temperature: [n] float32.
        seeds: [2, n] int32, low words and high words.
        lengths: [n] int32, tokens that a row has before the sampled one.
        sampled_rows: [n] int32.
        updates: [2, NUM_UPDATES] int32, places in the block tables, and block ids.
        tables: of the attention, int32.
        size: integers in all.
    """

    token_ids: Any
    rows: Any
    positions: Any
    logit_indices: Any
    temperature: Any
    seeds: Any
    lengths: Any
    sampled_rows: Any
    updates: Any
    tables: list[Any]
    size: int


def place(
    shape: StepShape,
    tables: Sequence[tuple[int, ...]],
    take: Callable[[int, tuple[int, ...]], Any],
    as_floats: Callable[[Any], Any],
) -> Places:
    """Lay out a step.

    Args:
        shape: the largest step.
        tables: shapes of the attention's tables.
        take: the integers from a place on, in a shape.
        as_floats: the same memory as float32.
    """
    end = 0

    def next_place(*dims: int) -> Any:
        nonlocal end
        begin, end = end, end + -(-int(np.prod(dims)) // ALIGN) * ALIGN
        return take(begin, dims)

    num_tokens, num_rows = shape.num_tokens, shape.num_seqs
    return Places(
        token_ids=next_place(num_tokens),
        rows=next_place(num_tokens),
        positions=next_place(num_tokens),
        logit_indices=next_place(0 if shape.is_decode else num_rows),
        temperature=as_floats(next_place(num_rows)),
        seeds=next_place(2, num_rows),
        lengths=next_place(num_rows),
        sampled_rows=next_place(num_rows),
        updates=next_place(2, NUM_UPDATES),
        tables=[next_place(*dims) for dims in tables],
        size=end,
    )


def num_integers(shape: StepShape, tables: Sequence[tuple[int, ...]]) -> int:
    """How long a buffer must be."""
    return place(shape, tables, lambda begin, dims: None, lambda section: None).size


def place_on_host(buffer: Section, shape: StepShape, tables: Sequence[tuple[int, ...]]) -> Places:
    """Views of a host buffer."""

    def take(begin: int, dims: tuple[int, ...]) -> Section:
        return buffer[begin : begin + int(np.prod(dims))].reshape(dims)

    return place(shape, tables, take, lambda section: section.view(np.float32))


def place_on_device(
    buffer: torch.Tensor, shape: StepShape, tables: Sequence[tuple[int, ...]]
) -> Places:
    """Views of a device buffer."""

    def take(begin: int, dims: tuple[int, ...]) -> torch.Tensor:
        return buffer[begin : begin + int(np.prod(dims))].view(dims)

    return place(shape, tables, take, lambda section: section.view(torch.float32))


@dataclass(slots=True)
class Slot:
    """Pinned memory for one step in flight.

    Attributes:
        inputs: int32; filled for the step.
        outputs: int32; the tokens that the step sampled.
        places: views of `inputs` by shape, made when first used, and what is to be copied.
        end: where the last step that used the slot ends in the device's queue.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    places: dict[StepShape, tuple[Places, torch.Tensor]] = field(default_factory=dict)
    end: Any = None

    def places_of(
        self, shape: StepShape, tables: Sequence[tuple[int, ...]]
    ) -> tuple[Places, torch.Tensor]:
        """Views of the inputs, and the part of them that a step of this shape reads."""
        found = self.places.get(shape)
        if found is None:
            places = place_on_host(self.inputs.numpy(), shape, tables)
            found = self.places[shape] = places, self.inputs[: places.size]
        return found


def make_slot(num_inputs: int, num_outputs: int, device: torch.device) -> Slot:
    """A slot; pinned where the device copies from it by itself."""
    pins = device.type == "cuda"
    return Slot(
        torch.zeros(num_inputs, dtype=torch.int32, pin_memory=pins),
        torch.zeros(num_outputs, dtype=torch.int32, pin_memory=pins),
    )
