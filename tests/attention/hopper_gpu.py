"""What tests of the kernels for Hopper have in common."""

from __future__ import annotations

import pytest
import torch

CUDA = torch.device("cuda:0")
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
_HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)

needs_hopper = pytest.mark.skipif(not _HAS_HOPPER, reason="no Hopper GPU")
