"""The head start: nothing of it may cost or break anything where there is no GPU."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from octavo.config import EngineConfig
from octavo.kernels import compile_processes
from octavo.runner import early

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("device", "index"),
    [("auto", 0), ("cuda", 0), ("cuda:3", 3), ("cpu", None), ("mps", None), ("cuda:x", None)],
)
def test_which_device_is_prepared(device: str, index: int | None) -> None:
    assert early._device_index(device) == index


@pytest.mark.parametrize("has_driver", [False, True])
@pytest.mark.parametrize("is_built_for_it", [False, True])
def test_both_a_driver_and_torch_must_be_there(
    has_driver: bool, is_built_for_it: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver, library = tmp_path / "nvidiactl", tmp_path / "torch" / "lib" / "libtorch_cuda.so"
    library.parent.mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    for path, is_there in ((driver, has_driver), (library, is_built_for_it)):
        if is_there:
            path.touch()
    monkeypatch.setattr(early, "_DRIVER", driver)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    started: list[str] = []
    monkeypatch.setattr(compile_processes, "start", lambda: started.append("processes"))
    monkeypatch.setattr(early, "_make_context", lambda index: started.append(f"context {index}"))
    with early.head_start(EngineConfig(model="m")):
        pass
    for thread in threading.enumerate():
        if thread.name == "context":
            thread.join()
    expected = {"processes", "context 0"} if has_driver and is_built_for_it else set()
    assert set(started) == expected


def test_processes_that_nobody_took_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "_has_cuda", lambda: True)
    monkeypatch.setattr(early, "_make_context", lambda index: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # as if Triton were there
    monkeypatch.setenv("OCTAVO_COMPILE_PROCESSES", "1")
    with early.head_start(EngineConfig(model="m")):
        started = compile_processes._started
        assert started is not None
    assert started._process.wait(10) != 0
    assert compile_processes._started is None


def test_the_context_is_the_devices_primary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def answer(name: str, *given: Any) -> int:
        calls.append((name, *given))
        return 0

    def give_device(device: Any, index: int) -> int:
        device._obj.value = 7
        return answer("cuDeviceGet", index)

    driver = SimpleNamespace(
        cuInit=lambda flags: answer("cuInit", flags),
        cuDeviceGet=give_device,
        cuDevicePrimaryCtxRetain=lambda _, device: answer("cuDevicePrimaryCtxRetain", device.value),
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    early._make_context(2)
    assert calls == [("cuInit", 0), ("cuDeviceGet", 2), ("cuDevicePrimaryCtxRetain", 7)]


def test_it_imports_neither_torch_nor_triton() -> None:
    script = (
        "import sys, octavo.runner.early, octavo.kernels.compile_server; "
        "sys.exit('torch' in sys.modules or 'triton' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
