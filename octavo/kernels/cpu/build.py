"""Compile the kernels' library beside this file, for work in a source tree.

    python -m octavo.kernels.cpu.build

An installation does the same by CMake (CMakeLists.txt, which holds the list of files for both).
`$CXX` and `$CXXFLAGS` are heeded: `CXXFLAGS="-fsanitize=address,undefined -g"` makes a checked one,
`CXX=aarch64-linux-gnu-g++` one for 64-bit Arm (with a target file of its own).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.kernels.cpu import LIBRARY_NAME

if TYPE_CHECKING:
    from collections.abc import Collection

HERE = Path(__file__).parent
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
X86 = {"avx2": [*AVX2, "-mtune=haswell"], "avx512vnni": [*AVX2, *AVX512]}
ARM = {
    "neon": ["-DOCTAVO_NEON", "-march=armv8-a"],
    "neondot": ["-DOCTAVO_NEON", "-march=armv8.2-a+dotprod"],
}
ISAS = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}
"""Flags of each instruction set, by the compiler's name of its target."""

FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
FLAGS += ["-ffp-contract=off"]  # what is rounded once is said in the sources (src/vec.h)


class BuildError(Exception):
    """There is no compiler, or it failed; the message has what it said."""


def build(
    target: Path | None = None, *, force: bool = False, only: Collection[str] | None = None
) -> Path:
    """Compile the library unless it is newer than its sources; returns where it is.

    Args:
        target: the file to write; None: where `octavo.kernels.cpu` looks.
        force: compile anyway.
        only: instruction sets to compile beside the portable one; None: all.

    Raises:
        BuildError: see there.
    """
    target = target or HERE / LIBRARY_NAME
    inputs = [HERE / "CMakeLists.txt", *(HERE / "src").iterdir()]
    if not force and target.exists():
        built = target.stat().st_mtime
        if all(path.stat().st_mtime <= built for path in inputs):
            return target
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None or shutil.which(compiler) is None:
        raise BuildError("no C++ compiler: install g++ or clang++, or name one in $CXX")
    extra = os.environ.get("CXXFLAGS", "").split()
    processor = _run([compiler, *extra, "-dumpmachine"]).split("-")[0]
    isas: dict[str, list[str]] = {"portable": []} | ISAS.get(processor, {})
    if only is not None:
        isas = {name: flags for name, flags in isas.items() if name == "portable" or name in only}
    kernels, common = (_files(kind) for kind in ("KERNELS", "COMMON"))
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for name, flags in isas.items():
            own = [*flags, f"-DOCTAVO_ISA={name}"]
            jobs += [(file, [*own, *extra], name) for file in [*kernels, "table.cpp"]]
        has = [f"-DOCTAVO_HAS_{name}" for name in isas]
        jobs += [(file, [*has, *extra], "common") for file in common]

        def compile_one(job: tuple[str, list[str], str]) -> str:
            file, flags, kind = job
            output = f"{folder}/{kind}_{file}.o"
            _run([compiler, *FLAGS, *flags, "-c", str(HERE / "src" / file), "-o", output])
            return output

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, jobs))
        # Beside the old one first, so that a process that has it open keeps it.
        new = target.with_suffix(f".{os.getpid()}.tmp")
        _run([compiler, "-shared", "-pthread", *extra, *objects, "-o", str(new)])
        new.replace(target)
    return target


def _files(kind: str) -> list[str]:
    """The list of files of this kind in CMakeLists.txt."""
    text = (HERE / "CMakeLists.txt").read_text(encoding="utf-8")
    match = re.search(rf"^set\({kind} ([^)]*)\)", text, re.MULTILINE)
    assert match is not None
    return match[1].split()


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout


def main() -> int:
    """The command line; 1 where nothing could be built."""
    parser = argparse.ArgumentParser(description="Compile Octavo's CPU kernels in a source tree.")
    parser.add_argument("--force", action="store_true", help="also if the library is up to date")
    try:
        print(build(force=parser.parse_args().force))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
