"""Finding and choosing: the library, its instruction sets, and what is said where it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.kernels import cpu
from octavo.kernels.cpu import build as build_module
from octavo.kernels.cpu.build import BuildError, build

ROOT = Path(cpu.__file__).parents[3]


@pytest.fixture
def fresh(native: None, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The library is looked for again, now and after the test."""
    cpu.forget()
    monkeypatch.setattr(cpu, "__path__", list(cpu.__path__))
    return monkeypatch


def usual() -> str:
    """What runs where nothing else is asked for."""
    return os.environ.get("OCTAVO_CPU_ISA", cpu.available_isas()[0])


@pytest.fixture(autouse=True)
def afterwards(native: None) -> object:
    yield
    cpu.forget()
    assert cpu.why_not() is None
    cpu.set_isa(usual())


def test_the_best_is_taken_and_another_on_request(fresh: pytest.MonkeyPatch) -> None:
    assert cpu.isa() == usual()
    assert cpu.available_isas()[-1] == "portable"
    with pytest.raises(ValueError, match="avx1024 is not one of"):
        cpu.set_isa("avx1024")
    cpu.forget()
    fresh.setenv("OCTAVO_CPU_ISA", "portable")
    assert cpu.why_not() is None
    assert cpu.isa() == "portable"


def test_an_unknown_name_or_off_is_a_reason(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("OCTAVO_CPU_ISA", "sse9")
    why_not = cpu.why_not()
    assert why_not is not None
    assert why_not.startswith("OCTAVO_CPU_ISA=sse9 is not one of ")
    cpu.forget()
    fresh.setenv("OCTAVO_CPU_ISA", "off")
    assert cpu.why_not() == "OCTAVO_CPU_ISA=off"


def test_a_missing_library_is_a_reason(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setattr(cpu, "__path__", [str(tmp_path)])
    assert "was not built: `python -m octavo.kernels.cpu.build`" in str(cpu.why_not())
    cpu.forget()
    (tmp_path / "why_not.txt").write_text("there was no C++ compiler\n")
    assert cpu.why_not() == "there was no C++ compiler"
    cpu.forget()
    (tmp_path / cpu.LIBRARY_NAME).write_bytes(b"no library")
    assert "cannot be loaded" in str(cpu.why_not())


def test_a_library_of_another_version_is_refused(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(cpu, "ABI", cpu.ABI + 1)
    assert "is of another version of Octavo" in str(cpu.why_not())


def test_a_built_library_is_not_built_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / cpu.LIBRARY_NAME
    target.write_bytes(b"")
    assert build(target) == target
    os.utime(target, (0, 0))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
        build(target)


def test_a_failing_compiler_says_what_it_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXXFLAGS", "--no-such-flag")
    with pytest.raises(BuildError, match="no-such-flag"):
        build(tmp_path / cpu.LIBRARY_NAME)


def test_both_builds_compile_the_same_files() -> None:
    files = {path.name for path in (build_module.HERE / "src").glob("*.cpp")}
    listed = {"table.cpp", *build_module._files("KERNELS"), *build_module._files("COMMON")}
    assert listed == files


@pytest.mark.slow
def test_without_a_compiler_the_build_succeeds_and_says_so(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    ninja = shutil.which("ninja")
    if cmake is None or ninja is None:
        pytest.skip("needs cmake and ninja")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in (cmake, ninja):
        (tools / Path(tool).name).symlink_to(tool)
    environment = {"PATH": str(tools), "HOME": str(tmp_path)}
    source = ROOT / "octavo" / "kernels" / "cpu"
    out = tmp_path / "build"
    for command in (
        [cmake, "-G", "Ninja", "-S", str(source), "-B", str(out)],
        [cmake, "--build", str(out)],
        [cmake, "--install", str(out), "--prefix", str(tmp_path / "site")],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "site" / "octavo" / "kernels" / "cpu"
    assert [path.name for path in folder.iterdir()] == ["why_not.txt"]
    assert "no C++ compiler" in (folder / "why_not.txt").read_text()


def test_a_forked_child_computes_with_threads_of_its_own(native: None) -> None:
    code = (
        "import os, torch\n"
        "from octavo.kernels import cpu\n"
        "from octavo.kernels.cpu import matmul\n"
        "cpu.set_num_threads(3)\n"
        "size = matmul.packed_bytes('Q8_0', 4096, 256)\n"
        "packed = matmul.allocate_packed(size)\n"
        "import numpy as np\n"
        "matmul.pack(packed, np.ones((4096, 272), np.uint8), 'Q8_0', (4096, 256), None,"
        " is_last=True)\n"
        "x = torch.ones(8, 256)\n"
        "want = matmul.linear(x, packed, 4096, None)\n"
        "pid = os.fork()\n"
        "same = torch.equal(matmul.linear(x, packed, 4096, None), want)\n"
        "if pid == 0: os._exit(0 if same else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0 and same\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_newest_library_is_taken(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that was built in the source tree after an installation, and the other way round."""
    (tmp_path / cpu.LIBRARY_NAME).write_bytes(b"no library")
    os.utime(tmp_path / cpu.LIBRARY_NAME, (0, 0))
    fresh.setattr(cpu, "__path__", [str(tmp_path), *cpu.__path__])
    assert cpu.why_not() is None
    cpu.forget()
    os.utime(tmp_path / cpu.LIBRARY_NAME)
    assert "cannot be loaded" in str(cpu.why_not())
