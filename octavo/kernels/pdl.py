"""Programmatic dependent launch: a kernel comes onto the card while the one before still runs.

Knows the discipline that makes that safe and worth while, and whether a device can; no kernel.
Between two kernels a GPU is idle for about a microsecond, which a decode step has hundreds of. With
compute capability 9.0 a kernel may be launched so that its programs start as soon as all of the one
before have called `gdc_launch_dependents` (or have ended); `gdc_wait` then holds it until that one
is finished and what it wrote can be seen (CUDA C++ Programming Guide, "Programmatic Dependent
Launch and Synchronization"). A graph keeps such edges. The rules, for kernels launched with
`options`:

1. Every program calls `gdc_wait`, whatever it does then. So a kernel is finished only after all
   those before it are, and waiting for one is waiting for all. A kernel launched as usual, be it a
   library's or a copy, waits by itself.
2. Before `gdc_wait` nothing is written, and nothing read but what was in place before some earlier
   kernel that was launched as usual: weights, rotation tables, and what a step gets from the host
   (the first kernel of a model, which looks up embeddings, is launched as usual).
3. Short kernels let the next one start after their own wait, products (`skinny_linear.py`) before
   it. Otherwise the programs of a product would settle while the product before is running its last
   ones, and crowd on the multiprocessors that happen to be free.

A kernel with nothing but copies or graphs for neighbours gains nothing and is launched as usual.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl

_is_enabled = True


@triton.jit
def wait_then_release():
    """For short kernels: wait for the kernel before, then let the next one start."""
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


@functools.cache
def options(device: torch.device) -> dict[str, Any]:
    """What to pass to a launch of a kernel that follows the rules: its constant PDL, and the mode.

    Not to be changed by the caller, who gets the same one each time.
    """
    if not _is_enabled or device.type != "cuda" or torch.version.hip is not None:
        return {"PDL": False}
    if torch.cuda.get_device_capability(device) < (9, 0):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


def set_enabled(enabled: bool) -> None:
    """Switch it on (as it is at first) or off for launches to come, to compare.

    Graphs stay as they were captured, and kernels are compiled anew.
    """
    global _is_enabled
    _is_enabled = enabled
    options.cache_clear()
