"""Damaged GGUF files through the kernels under the address and undefined-behaviour sanitizers.

    python scripts/fuzz_gguf.py --examples 2000

Compiles the kernels with both into a folder that is thrown away, and runs
tests/quant/test_gguf_fuzz.py in a Python that has the sanitizer's run-time library loaded before
anything else. Needs g++ with its sanitizers. Exits with what the test exits with.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from octavo.kernels.cpu import LIBRARY_NAME
from octavo.kernels.cpu.build import ARM, build

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"


def runtime(name: str) -> str:
    """The path of one of the compiler's own libraries."""
    found = subprocess.run(
        ["g++", f"-print-file-name={name}"], check=True, stdout=subprocess.PIPE, text=True
    )
    return found.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=2000, help="damaged files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CXX"], os.environ["CXXFLAGS"] = "g++", f"{SANITIZERS} -O1"
        build(Path(folder) / LIBRARY_NAME, only=["avx2", *ARM])
        environment = os.environ | {
            "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
            "ASAN_OPTIONS": "detect_leaks=0",
            "FUZZ_LIBRARY": folder,
            "FUZZ_EXAMPLES": str(args.examples),
            "PYTHONPATH": str(ROOT),
            "PYTHONMALLOC": "malloc",
        }
        test = str(ROOT / "tests" / "quant" / "test_gguf_fuzz.py")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
        return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
