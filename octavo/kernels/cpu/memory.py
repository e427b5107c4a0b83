"""Memory in large pages where the system has them.

With pages of 4 KiB a product of one row spends a fifth of its time on finding them, and a key of
another sequence is always on another page.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch


def large_pages(num_bytes: int, from_bytes: int = 0) -> torch.Tensor:
    """So many zeroed bytes [n] uint8, whose pages become resident when they are first written.

    Pages are of the usual size below `from_bytes`: of memory that is used in part, a large page
    takes 2 MiB for the first byte.
    """
    # Shared memory, which is what mmap gives otherwise, gets large pages on few systems.
    memory = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if num_bytes >= from_bytes and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:num_bytes]


def large_floats(*shape: int) -> torch.Tensor:
    """Zeroed float32 of this shape in large pages."""
    return large_pages(4 * math.prod(shape)).view(torch.float32).view(shape)
