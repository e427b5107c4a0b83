"""One copy to the device for all the integers of a step. Knows arrays, not what they mean.

Host memory is pinned and used in a ring, so that filling it for the next step does not wait for the
copy of this one. Sections begin at multiples of 16 bytes, which kernels are compiled for.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    Section = npt.NDArray[np.int32]

ALIGN = 4  # integers: 16 bytes


class Staging:
    """Sends sections of 32-bit integers.

    Args:
        device: where to.
        num_buffers: copies that may be in flight; one more waits for the oldest.
    """

    def __init__(self, device: torch.device, num_buffers: int = 4) -> None:
        self._device = device
        self._free: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque(
            (self._pinned(4096), None) for _ in range(num_buffers)
        )

    def send(
        self, sections: Sequence[Section], into: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """All sections in one copy, in the order of the current stream.

        Args:
            sections: int32, or float32 seen as int32.
            into: a tensor of the device to fill from its start; None: a new one.

        Returns:
            Views of the sections on the device, in their shapes.
        """
        starts, total = offsets(sections)
        buffer, copied = self._free.popleft()
        if copied is not None:
            copied.synchronize()
        if buffer.numel() < total:
            buffer = self._pinned(2 * total)
        flat = buffer.numpy()
        for start, section in zip(starts, sections, strict=True):
            flat[start : start + section.size] = section.reshape(-1)
        if into is None:
            into = torch.empty(total, dtype=torch.int32, device=self._device)
        into[:total].copy_(buffer[:total], non_blocking=True)
        if self._device.type == "cuda":
            copied = copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._free.append((buffer, copied))
        return views(into, sections)

    def _pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, pin_memory=self._device.type == "cuda")


def offsets(sections: Sequence[Section]) -> tuple[list[int], int]:
    """Where each section begins, and the end, in integers."""
    starts, total = [], 0
    for section in sections:
        starts.append(total)
        total += -(-section.size // ALIGN) * ALIGN
    return starts, total


def views(buffer: torch.Tensor, sections: Sequence[Section]) -> list[torch.Tensor]:
    """The places of `sections` in `buffer`, in their shapes."""
    starts, _ = offsets(sections)
    return [
        buffer[start : start + section.size].view(section.shape)
        for start, section in zip(starts, sections, strict=True)
    ]
