"""Work that would hold up everybody else, done in one thread beside the event loop, in turn."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE_BYTES = 1024**2
"""A body above this is read aside: a million messages in 32 MB take seconds."""

_T = TypeVar("_T")
_thread = ThreadPoolExecutor(1, thread_name_prefix="gateway-aside")  # made when first used


async def aside(work: Callable[[], _T]) -> _T:
    """What some work gives, when those before it are done. It goes on when this is cancelled."""
    return await asyncio.get_running_loop().run_in_executor(_thread, work)
