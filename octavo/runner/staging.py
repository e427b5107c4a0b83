"""One copy to the device for all the integers of a step. Knows arrays, not what they mean.

Host memory is pinned and used in a ring, so that filling it for the next step does not wait for the
copy of this one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

from octavo.attention.sections import fill, offsets, views

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.attention.sections import Section


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

    def send(self, sections: Sequence[Section]) -> list[torch.Tensor]:
        """All sections in one copy, in the order of the current stream.

        Args:
            sections: int32, or float32 seen as int32.

        Returns:
            Views of the sections on the device, in their shapes.
        """
        starts, total = offsets(sections)
        buffer, copied = self._free.popleft()
        if copied is not None:
            copied.synchronize()
        if buffer.numel() < total:
            buffer = self._pinned(2 * total)
        fill(buffer, sections, starts)
        on_device = torch.empty(total, dtype=torch.int32, device=self._device)
        on_device.copy_(buffer[:total], non_blocking=True)
        if self._device.type == "cuda":
            copied = copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._free.append((buffer, copied))
        return views(on_device, sections, starts)

    def _pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, pin_memory=self._device.type == "cuda")
