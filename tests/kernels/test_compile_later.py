"""Kernels that nobody waits for, and processes that do not do their part."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.kernels.compiling import SET_UP
from tests.kernels.offline import run_offline

if TYPE_CHECKING:
    from pathlib import Path

WAITED = (
    SET_UP
    + """
compiler = both(CompileProcesses(1))
num_plain = len(driver.loaded_in)
late = compiler.later._kernels
assert late[0].is_compiled.wait(60)
is_last_missing = not late[-1].is_compiled.is_set()
with compiler.later.leaving_out():
    special()
left_out = list(driver.launches)
loaded = compiler.later.load()
gated(x, "gelu")
others = [kernel.is_compiled.is_set() for kernel in late[:-1]]
for kernel in late:
    assert kernel.is_compiled.wait(60)
del driver.launches[1:]
with compiler.later.leaving_out():
    special()
print(json.dumps({
    "hits": hits, "is_last_missing": is_last_missing, "left_out": left_out,
    "missing": loaded.num_missing, "launches": driver.launches,
    "others": others,
}))
"""
)


def test_a_step_waits_for_its_own_kernel_alone(tmp_path: Path) -> None:
    done = run_offline(WAITED, tmp_path)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["is_last_missing"]  # one process cannot have been so quick
    assert said["left_out"] == []  # not those either that were there
    assert said["missing"] >= 1
    assert said["launches"][0] == "gated_kernel"
    assert all(said["hits"])
    assert not all(said["others"])
    # Once all are there, nothing is left out.
    assert {"draw_kernel", "split_kernel", "gated_kernel"} <= set(said["launches"][1:])
    assert done.stderr.count("a step waited") == 1
    assert "for the kernel gated_kernel" in done.stderr


LOST = (
    SET_UP
    + """
processes = CompileProcesses(2)
processes._process.kill()
processes._process.wait()
compiler = both(processes)
compiler.later.load()
plain()
special()
print(json.dumps({"hits": hits, "launches": driver.launches, "done": compiler.done.as_dict()}))
"""
)


def test_without_the_processes_threads_compile(tmp_path: Path) -> None:
    done = run_offline(LOST, tmp_path)
    said = json.loads(done.stdout.splitlines()[-1])
    assert not any(said["hits"])
    assert len(said["hits"]) == said["done"]["num_kernels"] + said["done"]["num_later"] >= 13
    assert {"norm_kernel", "draw_kernel", "gated_kernel"} <= set(said["launches"])
    assert done.stderr.count("compiled in threads") <= 1
    assert "a step waited" not in done.stderr


FAILS = (
    SET_UP
    + """
from octavo.kernels.norm import norm_kernel

def launch(num_columns):
    norm_kernel[(1,)](x, x, x, x, 64, 64, D=64, D_PAD=num_columns, EPS=0.0, OFFSET=0.0, ADD=False,
                      PDL=False)

with Compiler(torch.device("cpu"), 2, CompileProcesses(2)) as compiler:
    with compiler.rehearse():
        launch(48)
        launch(64)
try:
    launch(48)
    refusal = None
except Exception as error:
    refusal = type(error).__name__
launch(64)
print(json.dumps([refusal, driver.launches, compiler.done.num_by_processes]))
"""
)


def test_what_cannot_be_compiled_raises_when_it_is_launched(tmp_path: Path) -> None:
    done = run_offline(FAILS, tmp_path)
    # 48 is no power of two.
    assert json.loads(done.stdout.splitlines()[-1]) == ["CompilationError", ["norm_kernel"], 1]
    assert done.stderr.count("compiled in threads") == 1
