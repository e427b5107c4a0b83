"""Where layers find the fused kernels, and whether they may use them. Knows no kernel."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def fused_kernels(name: str, device: torch.device) -> Any | None:
    """The module `octavo.kernels.NAME`, or None where `device` must do with torch's operators.

    A layer asks once, when it is made: whether its weights lie on a GPU does not change.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(f"octavo.kernels.{name}")
