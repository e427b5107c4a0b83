"""Triton's compiler without a GPU: a driver that compiles for one, and launches nothing.

For child processes: this one may have chosen Triton's interpreter already.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


class OfflineDriver:
    """An H100 as far as the compiler is concerned.

    Attributes:
        loaded_in: the thread in which each kernel got its launcher, and the kernel's name.
        launches: names of launched kernels.
    """

    def __init__(self) -> None:
        self.loaded_in: list[tuple[str, str]] = []
        self.launches: list[str] = []
        self.utils = self

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        name = metadata.name
        self.loaded_in.append((threading.current_thread().name, name))
        return lambda *_: self.launches.append(name)

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        return (1, 1, 32, 0, 1024)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


def use_offline_driver() -> OfflineDriver:
    from triton.runtime import driver

    offline = OfflineDriver()
    driver.set_active(offline)
    return offline


def run_offline(script: str, cache: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script with Triton's compiler, if there is one; it must succeed."""
    pytest.importorskip("triton", minversion="3.6", reason="triton >= 3.6 is not installed")
    environment = dict(os.environ)
    environment.pop("TRITON_INTERPRET", None)
    environment["TRITON_CACHE_DIR"] = str(cache)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", script, *argv],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
