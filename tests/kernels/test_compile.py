"""Kernels compiled ahead, for an H100 that is not there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.kernels.offline import run_offline

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import json, logging, sys
import torch

from tests.kernels.offline import use_offline_driver

driver = use_offline_driver()
from octavo.kernels.activation import gated
from octavo.kernels.compile import Compiler
from octavo.kernels.norm import add_rms_norm, norm_kernel, rms_norm
from octavo.kernels.sampling import sample_plain

logging.basicConfig(format="%(message)s")
x = torch.zeros(3, 64, dtype=torch.bfloat16)

def step():
    rms_norm(x, x[0], 1e-6)
    add_rms_norm(x, x, x[0], 1e-6)
    gated(x, "silu")

with Compiler(torch.device("cpu"), 3) as compiler:
    with compiler.rehearse():
        step()
        step()
        try:
            norm_kernel[(1,)](x, x, x, x, 64, 64, D=64, D_PAD=48, EPS=0.0, OFFSET=0.0, ADD=False,
                              PDL=False)
        except Exception as error:
            print("rehearsal failed", error)
    launched_by_rehearsal = len(driver.launches)
    add_rms_norm(x, x, x[0], 1e-6)  # a real launch inside waits for its kernel alone
    launched_inside = list(driver.launches)
rehearsed = list(driver.loaded_in)
step()
try:
    norm_kernel[(1,)](x, x, x, x, 64, 64, D=64, D_PAD=48, EPS=0.0, OFFSET=0.0, ADD=False, PDL=False)
    refusal = None
except Exception as error:
    refusal = type(error).__name__
before_late = list(driver.loaded_in)
gated(x, "gelu")
print(json.dumps({
    "launched_by_rehearsal": launched_by_rehearsal,
    "launched_inside": launched_inside,
    "rehearsed": rehearsed,
    "before_late": before_late,
    "launches": driver.launches,
    "refusal": refusal,
    "done": compiler.done.as_dict(),
}))
"""


def test_rehearsed_launches_compile_side_by_side_and_run_nothing(tmp_path: Path) -> None:
    done = run_offline(SCRIPT, tmp_path)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["launched_by_rehearsal"] == 0
    assert said["launched_inside"] == ["norm_kernel"]
    assert sorted(name for _, name in said["rehearsed"]) == [
        "gated_kernel", "norm_kernel", "norm_kernel",
    ]  # fmt: skip
    assert all(thread.startswith("compile") for thread, _ in said["rehearsed"])
    # Real launches found everything in place.
    assert said["before_late"] == said["rehearsed"]
    assert said["launches"] == [
        *("norm_kernel", "norm_kernel", "norm_kernel", "gated_kernel"),
        "gated_kernel",
    ]
    assert said["done"]["num_kernels"] == 3
    assert said["done"]["waited_s"] <= said["done"]["elapsed_s"]
    # D_PAD is no power of two: the launch raises what the compiler said.
    assert said["refusal"] == "CompilationError"
    assert done.stderr.count("a step waited for the kernel") == 1
    assert "gated_kernel" in done.stderr
