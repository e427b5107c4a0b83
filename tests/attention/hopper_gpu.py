"""What tests of the kernels for Hopper have in common."""

from __future__ import annotations

import pytest
import torch

CUDA = torch.device("cuda:0")
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
_HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)

needs_hopper = pytest.mark.skipif(not _HAS_HOPPER, reason="no Hopper GPU")

OFFLINE = """
import sys
from dataclasses import replace
import numpy as np, torch
from tests.kernels.offline import use_offline_driver
driver = use_offline_driver()
from octavo.attention import hopper_decodes, hopper_prompts
from octavo.attention.interface import AttentionSpec, BatchLayout, LayerAttention
from octavo.attention.triton_paged import TritonAttention, default_tunings
from octavo.attention.work import StepShape

heads, kv_heads, dim, page, window, cap = map(int, sys.argv[1:])
window = window or None
cpu, dtype = torch.device("cpu"), torch.bfloat16
spec = AttentionSpec(heads, kv_heads, dim, dtype, cpu, page, frozenset({window}), cap or None)
"""
"""How a script for `run_offline` begins: `spec` is a model whose kernels are compiled, not run."""
