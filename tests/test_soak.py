"""Streaming clients, a third of which leave: the verdict of the benchmark, on a tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import TinyLlama

SOAK = Path(__file__).parent.parent / "benchmarks" / "cpu" / "soak.py"


def test_clients_that_leave_cost_the_others_nothing(tiny_llama: TinyLlama) -> None:
    command = [sys.executable, str(SOAK), "--model", str(tiny_llama()), "--rounds", "3"]
    # A small cache, so that requests are preempted too.
    command += ["--words", "8", "--kv-cache-memory", "2MiB", "--growth", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("passed")
