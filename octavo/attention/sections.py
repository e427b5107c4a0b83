"""Arrays of 32-bit integers one behind the other, so that one copy takes them to a device.

Sections begin at multiples of 16 bytes, which kernels are compiled for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    Section = npt.NDArray[np.int32]

ALIGN = 4  # integers: 16 bytes


def offsets(sections: Sequence[Section]) -> tuple[list[int], int]:
    """Where each section begins, and the end, in integers."""
    starts, total = [], 0
    for section in sections:
        starts.append(total)
        total += -(-section.size // ALIGN) * ALIGN
    return starts, total


def fill(buffer: torch.Tensor, sections: Sequence[Section], starts: Sequence[int]) -> None:
    """Put the sections into their places in a host buffer."""
    flat = buffer.numpy()
    for start, section in zip(starts, sections, strict=True):
        flat[start : start + section.size] = section.reshape(-1)


def views(
    buffer: torch.Tensor, sections: Sequence[Section], starts: Sequence[int]
) -> list[torch.Tensor]:
    """The places of the sections in `buffer`, in their shapes."""
    return [
        buffer[start : start + section.size].view(section.shape)
        for start, section in zip(starts, sections, strict=True)
    ]
