"""The README's code runs: each `python` and `bash` block, in order, with a server of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BASE_URL = "http://127.0.0.1:8000"
START_S = 90.0


class Block(NamedTuple):
    language: str
    line: int
    code: str


def blocks(text: str, *languages: str) -> list[Block]:
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(match[1], text.count("\n", 0, match.start()) + 1, match[2])
        for match in found
        if match[1] in languages
    ]


RUNNABLE = blocks(README, "python", "bash")


def environment() -> dict[str, str]:
    """This interpreter's programs first, and the checkout importable from any folder."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture(scope="module")
def base_url(smollm2_path: Path) -> Iterator[str]:
    """A server of `smollm2`, started as `make serve` starts it, on a free port."""
    assert smollm2_path.exists()
    command = [sys.executable, "-m", "octavo.cli.main", "serve", "smollm2", "--pull", "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command, env=environment(), stdout=log, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield _wait_until_ready(server, log)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                code = server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
        assert code == 0


def _wait_until_ready(server: subprocess.Popen[str], log: tempfile._TemporaryFileWrapper) -> str:  # type: ignore[type-arg]
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        log.seek(0)
        ready = re.search(r"ready at (http://[\d.]+:\d+)/v1", log.read())
        if ready and httpx.get(f"{ready[1]}/health", timeout=10).status_code == 200:
            return ready[1]
        time.sleep(0.1)
    log.seek(0)
    pytest.fail(f"no server after {START_S} s, exit code {server.poll()}:\n{log.read()}")


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: f"{block.language}-{block.line}")
def test_the_block_runs(block: Block, base_url: str, tmp_path: Path) -> None:
    code = block.code.replace(BASE_URL, base_url)
    programs = {"python": [sys.executable, "-c"], "bash": ["bash", "-euo", "pipefail", "-c"]}
    done = subprocess.run(
        [*programs[block.language], code],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert len(done.stdout.strip()) > 20, "an answer was expected"
    if "capital of France" in code:
        assert "Paris" in done.stdout


def test_blocks_are_found_and_use_one_address() -> None:
    assert [block.language for block in RUNNABLE].count("python") >= 2
    assert [block.language for block in RUNNABLE].count("bash") >= 2
    assert blocks("a\n```python\nx = 1\n```\n", "python") == [Block("python", 2, "x = 1\n")]
    ports = set(re.findall(r"127\.0\.0\.1:(\d+)", README))
    assert ports == {"8000"}, "the test replaces this one"


def test_the_files_of_a_request_exist() -> None:
    way = re.findall(r"^\| \d \| `([\w/]+\.py)` \|", README, re.MULTILINE)
    assert len(way) == 8
    assert [name for name in way if not (ROOT / "octavo" / name).exists()] == []


def test_flags_of_the_table_exist() -> None:
    from octavo.cli.main import build_parser

    (table,) = re.findall(r"^\| flag of `octavo serve` \|.*?\n\n", README, re.MULTILINE | re.DOTALL)
    parser = build_parser(["serve"])
    known = {word for a in parser._subparsers._group_actions for p in a.choices.values()  # type: ignore[union-attr]
             for word in p._option_string_actions}  # fmt: skip
    flags = set(re.findall(r"--[a-z][a-z-]+", table))
    assert len(flags) >= 8
    assert flags <= known
