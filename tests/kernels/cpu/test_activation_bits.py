"""Activations of 16 bits: nearer to what was asked for, the same whatever computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo import config
from octavo.errors import ConfigError
from octavo.kernels import cpu

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json
import numpy as np
import torch
from octavo.kernels import cpu
from octavo.kernels.cpu import matmul
from tests.kernels.cpu.helper import decode, pack, random_blocks

rng = np.random.default_rng(1)
shape = (96, 768)
stored = random_blocks("Q4_1", *shape, rng)
x = rng.standard_normal((9, shape[1])).astype(np.float32)
x[:, ::97] *= 50
exact = x.astype(np.float64) @ decode(stored, "Q4_1", shape).T
found = {}
for isa in cpu.available_isas():
    cpu.set_isa(isa)
    packed = pack(stored, "Q4_1", shape)
    out = matmul.linear(torch.from_numpy(x), packed, shape[0], None).double().numpy()
    found[isa] = float(np.linalg.norm(out - exact) / np.linalg.norm(exact))
print(json.dumps(found))
"""


def environment(bits: int) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, sys.path)]
    given = {name: value for name, value in os.environ.items() if name != "OCTAVO_CPU_ISA"}
    return given | {
        "OCTAVO_CPU_ACTIVATION_BITS": str(bits),
        "PYTHONPATH": os.pathsep.join(paths),
    }


@pytest.fixture(autouse=True)
def _library() -> None:
    if cpu.why_not() is not None:
        pytest.skip(str(cpu.why_not()))


def test_16_bits_are_much_nearer() -> None:
    errors: dict[int, dict[str, float]] = {}
    for bits in (8, 16):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=ROOT,
            env=environment(bits),
        )  # fmt: skip
        errors[bits] = json.loads(done.stdout)
    assert errors[8].keys() == errors[16].keys() == set(cpu.available_isas())
    for isa, error in errors[16].items():
        assert error < 1e-4
        assert errors[8][isa] > 20 * error


@pytest.mark.parametrize("tests", ["kernels/cpu/test_matmul.py", "quant/test_gguf_torch.py"])
def test_kernels_hold_with_16_bits(tests: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider",
         f"tests/{tests}"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment(16),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.model
@pytest.mark.skipif("OCTAVO_TEST_FULL" not in os.environ, reason="OCTAVO_TEST_FULL=1 runs it")
def test_texts_do_not_depend_on_what_computes() -> None:
    ways = ["decoded", "off", *(isa for isa in cpu.available_isas() if isa != "portable")]
    done = subprocess.run(
        [sys.executable, "benchmarks/cpu/texts.py", "--ways", *ways, "--json"],
        capture_output=True, text=True, check=True, cwd=ROOT, env=environment(16),
    )  # fmt: skip
    for pair in map(json.loads, done.stdout.splitlines()):
        assert pair["same"] == pair["texts"] == 16, pair


@pytest.mark.parametrize("given", ["7", "sixteen", "16.0"])
def test_other_numbers_are_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CPU_ACTIVATION_BITS", given)
    with pytest.raises(ConfigError, match="OCTAVO_CPU_ACTIVATION_BITS must be 8 or 16"):
        config.cpu_activation_bits()
