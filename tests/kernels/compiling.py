"""What scripts begin with that have other processes compile for an H100 that is not there."""

from __future__ import annotations

SET_UP = """
import json, logging, os, sys
import torch, triton

from tests.kernels.offline import use_offline_driver

driver = use_offline_driver()
from octavo.kernels import compile_processes, skinny_linear
from octavo.kernels.activation import gated
from octavo.kernels.compile import Compiler
from octavo.kernels.compile_processes import CompileProcesses
from octavo.kernels.norm import rms_norm
from octavo.kernels.sampling import sample_plain
from octavo.kernels.truncated_sampling import sample_truncated

logging.basicConfig(format="%(message)s", level="INFO")
hits = []
triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
x = torch.zeros(64, 128, dtype=torch.bfloat16)
weight = torch.zeros(128, 128, dtype=torch.bfloat16)
ids, floats = torch.zeros(64, dtype=torch.int32), torch.zeros(64)

def products():
    for num_rows in (1, 16):
        # The names of these two in the cache depend on the order in which Triton meets them.
        config = skinny_linear.choose(num_rows, 14336, 4096)
        skinny_linear.skinny_linear(x[:num_rows], weight, None, config)

def plain():
    rms_norm(x, x[0], 1e-6)
    products()
    sample_plain(x, floats, floats, ids, ids, ids)

def special():
    sample_truncated(x, floats, ids, floats, floats, floats, ids, ids, ids)
    sample_plain(x.float(), floats, floats, ids, ids, ids)
    gated(x, "gelu")

def both(processes):
    with Compiler(torch.device("cpu"), 2, processes) as compiler:
        with compiler.rehearse():
            plain()
        with compiler.rehearse(can_wait=True):
            special()
    return compiler
"""
