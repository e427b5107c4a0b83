"""Kernels compiled by other processes, for an H100 that is not there.

Whether this process finds what they compiled is what Triton itself says of its cache.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from octavo.errors import ConfigError
from octavo.kernels import compile_processes
from tests.kernels.compiling import SET_UP
from tests.kernels.offline import run_offline

if TYPE_CHECKING:
    from pathlib import Path

FOUND = (
    SET_UP
    + """
compiler = both(CompileProcesses(2))
done = compiler.done.as_dict()
for late in compiler.later._kernels:
    assert late.is_compiled.wait(60)
loaded = compiler.later.load()
in_place = list(driver.loaded_in)
plain()
special()
again = both(None)
print(json.dumps({
    "hits": hits, "done": done, "loaded": [loaded.num_kernels, loaded.num_missing],
    "in_place": len(in_place), "loaded_in": len(driver.loaded_in), "launches": driver.launches,
    "again": again.done.as_dict(),
}))
"""
)


def test_this_process_finds_all_that_others_compiled(tmp_path: Path) -> None:
    done = run_offline(FOUND, tmp_path)
    said = json.loads(done.stdout.splitlines()[-1])
    num_plain, num_later = said["done"]["num_kernels"], said["done"]["num_later"]
    assert num_plain == said["done"]["num_by_processes"] == 5
    assert said["loaded"] == [num_later, 0]
    assert num_later >= 8
    # Nothing was compiled in this process, and what real launches needed was in place.
    assert said["hits"]
    assert all(said["hits"])
    assert said["in_place"] == said["loaded_in"] == num_plain + num_later
    assert {"norm_kernel", "gemv_kernel", "dot_kernel", "draw_kernel"} <= set(said["launches"])
    # Each has one name only: nothing was compiled under another.
    assert len(list(tmp_path.glob("*/*.cubin"))) == num_plain + num_later
    assert "a step waited" not in done.stderr
    assert "compiled in threads" not in done.stderr


ENDS = """
import json, os, sys, time
from octavo.kernels.compile_processes import CompileProcesses

assert "torch" not in sys.modules and "triton" not in sys.modules
ended = []
for leave in (CompileProcesses.end, CompileProcesses.close, lambda p: p._process.stdin.close()):
    processes = CompileProcesses(1)
    answers = []
    leave(processes)
    ended.append(processes._process.wait(30))
    while not processes.is_lost:
        time.sleep(0.01)
    processes.submit({"module": "m", "name": "n", "launch": "", "target": ["cuda", 90, 32],
                      "can_wait": False}, answers.append)
    assert len(answers) == 1 and answers[0].error
print(json.dumps(ended))
"""


def test_processes_end_when_they_are_told_to_and_with_who_started_them(tmp_path: Path) -> None:
    done = run_offline(ENDS, tmp_path)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, -9, 0]


NAMES = """
import json, sys
import torch

from octavo.kernels import skinny_kernels, truncated_bounds, truncated_draw
from octavo.kernels.compile_server import settle_name

kernels = [skinny_kernels.gemv_kernel, skinny_kernels.dot_kernel, truncated_draw.draw_kernel,
           truncated_bounds.narrow_kernel, truncated_bounds.survey_kernel]
if sys.argv[1] == "backwards":
    kernels.reverse()
for kernel in kernels:
    settle_name(kernel)
print(json.dumps({kernel.__name__: kernel.cache_key for kernel in kernels}))
"""


def test_names_in_the_cache_do_not_depend_on_the_order(tmp_path: Path) -> None:
    names = [
        json.loads(run_offline(NAMES, tmp_path, order).stdout)
        for order in ("forwards", "backwards")
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 5


def test_the_number_of_processes_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_COMPILE_PROCESSES", "3")
    assert compile_processes.num_processes() == 3
    monkeypatch.setenv("OCTAVO_COMPILE_PROCESSES", "0")
    assert compile_processes.take() is None
    monkeypatch.setenv("OCTAVO_COMPILE_PROCESSES", "few")
    with pytest.raises(ConfigError, match="OCTAVO_COMPILE_PROCESSES"):
        compile_processes.num_processes()
    monkeypatch.delenv("OCTAVO_COMPILE_PROCESSES")
    if sys.platform == "linux":
        assert 1 <= compile_processes.num_processes() <= 16
