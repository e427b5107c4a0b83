"""Write `constraints/cpu.txt`: one version of every package, out of a clean environment.

    python3.11 scripts/constraints.py --torch 2.13.0

Run it with the oldest Python that Octavo supports: what installs there installs on the newer ones.
pip's own configuration decides where packages come from; the file names none of it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "constraints" / "cpu.txt"
HEADER = """\
# Every package of the CPU set-up, runtime and development, at one version.
# Written by scripts/constraints.py on Python {python}; change it there and not here.
"""


def freeze(torch: str) -> list[str]:
    """`name==version` lines of a fresh environment with Octavo's development extras."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")

        def pip(*args: str) -> None:
            subprocess.run([python, "-m", "pip", *args], check=True, stdout=sys.stderr)

        pip("install", "--upgrade", "pip", "setuptools")
        pip("install", f"torch=={torch}")
        pip("install", f"torch=={torch}", *requirements())
        done = subprocess.run(
            [python, "-m", "pip", "freeze", "--all"], check=True, capture_output=True, text=True
        )
    return done.stdout.splitlines()


def requirements() -> list[str]:
    """The requirements of pyproject.toml: runtime, development, and of the build."""
    import tomllib

    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = whole["project"]
    extras = project["optional-dependencies"]
    build = [*whole["build-system"]["requires"], "cmake", "ninja"]
    return [*project["dependencies"], *extras["dev"], *extras["gateway"], *build]


def clean(lines: list[str]) -> list[str]:
    """Without what is not a published version: local build tags, editable installs, URLs."""
    pins = [re.sub(r"\+[\w.]+$", "", line.strip()) for line in lines]
    return sorted((pin for pin in pins if re.fullmatch(r"[\w.-]+==\S+", pin)), key=str.lower)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", required=True, metavar="VERSION")
    pins = clean(freeze(parser.parse_args().torch))
    python = ".".join(map(str, sys.version_info[:2]))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(HEADER.format(python=python) + "\n".join(pins) + "\n")
    print(f"{len(pins)} packages in {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
