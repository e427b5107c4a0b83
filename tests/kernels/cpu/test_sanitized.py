"""The library under the address and undefined-behaviour sanitizers, driven without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from octavo.kernels import cpu
from octavo.kernels.cpu.build import build
from tests.full import FULL

DRIVERS = [
    Path(__file__).parent / name
    for name in ("driver.cpp", "plan_driver.cpp", "pieces_driver.cpp", "sample_driver.cpp")
]
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"


def can_sanitize(folder: Path) -> bool:
    source = folder / "probe.cpp"
    source.write_text("int main() {}\n")
    command = ["g++", *SANITIZERS.split(), str(source), "-o", str(folder / "probe")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("which", ["best", pytest.param("others", marks=FULL)])
def test_no_byte_too_far_and_no_undefined_behaviour(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: None
) -> None:
    best, *others = cpu.available_isas()
    isas = [best] if which == "best" else others
    if shutil.which("g++") is None or not can_sanitize(tmp_path):
        pytest.skip("needs g++ with sanitizers")
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setenv("CXXFLAGS", f"{SANITIZERS} -O1")
    library = build(tmp_path / cpu.LIBRARY_NAME, only=isas)
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    for source in DRIVERS:
        driver = tmp_path / source.stem
        command = ["g++", "-std=c++17", "-O1", *SANITIZERS.split(), str(source), str(library)]
        subprocess.run([*command, f"-Wl,-rpath,{tmp_path}", "-o", str(driver)], check=True)
        done = subprocess.run(
            [str(driver)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("good") >= 8
