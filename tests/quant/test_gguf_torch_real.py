"""Real models with the native kernels and by torch alone: the same bits, and so the same texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from octavo.attention.interface import BatchLayout
from octavo.kernels import cpu
from octavo.runner.native_plan import NativePlan
from octavo.runner.reference import ReferenceForward
from tests.full import FULL
from tests.runner.cpu_steps import batch_of, load_real_runner

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@contextmanager
def isa(name: str) -> Iterator[None]:
    """OCTAVO_CPU_ISA while a model is loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CPU_ISA", name)
        cpu.forget()
        try:
            yield
        finally:
            patch.undo()
            cpu.forget()


@pytest.fixture(autouse=True)
def _library() -> None:
    if os.environ.get("OCTAVO_CPU_ISA") == cpu.OFF or cpu.why_not() is not None:
        pytest.skip(str(cpu.why_not()))


@pytest.mark.model
@pytest.mark.parametrize("model", ["smollm2_path", "gemma_path"])
def test_logits_have_the_kernels_bits(model: str, request: pytest.FixtureRequest) -> None:
    """Of a prompt of more than one part of keys, in two pieces, and of two streams behind it."""
    path = request.getfixturevalue(model)
    with isa(cpu.OFF):
        ours = load_real_runner(path)
    native = load_real_runner(path)
    token_ids = torch.randint(100, 5000, (140,), generator=torch.Generator().manual_seed(0))
    tables = np.stack([np.arange(12), np.arange(12, 24)])
    forwards = [runner._steps._forward for runner in (ours, native)]  # type: ignore[union-attr]
    assert [type(each) for each in forwards] == [ReferenceForward, NativePlan]
    for starts, lens in (([0, 17], [0]), ([0, 123], [17]), ([0, 1, 6], [140, 0])):
        layout = BatchLayout(np.array(starts), np.array(lens), tables[: len(lens)])
        first = 0 if len(lens) == 2 else lens[0]
        found = []
        for runner, forward in zip((ours, native), forwards, strict=True):
            batch = batch_of(runner, layout, token_ids[first : first + starts[-1]])
            with torch.inference_mode():
                found.append(forward.logits(batch))
        assert torch.equal(*found)


@pytest.mark.model
@pytest.mark.parametrize("count", [1, pytest.param(16, marks=FULL)])
def test_texts_are_the_same(count: int, smollm2_path: Path) -> None:
    """Of the benchmark's first prompts, with every instruction set and without any."""
    isas = [name for name in cpu.available_isas() if name != "portable" or count == 1]
    ways = [cpu.OFF, *(isas if count == 16 else isas[:1])]
    command = [sys.executable, str(ROOT / "benchmarks" / "cpu" / "texts.py"), "--json"]
    command += ["--model", str(smollm2_path), "--prompts", str(count), "--ways", *ways]
    command += ["--tokens", "24" if count == 16 else "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pairs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(pairs) == len(ways) * (len(ways) - 1) // 2
    for pair in pairs:
        assert pair["same"] == pair["texts"] == count, pair
        assert pair["divergence"] == pair["difference"] == 0, pair
