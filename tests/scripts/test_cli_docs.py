from __future__ import annotations

from pathlib import Path

from octavo.cli.main import COMMANDS
from scripts import cli_docs

ROOT = Path(__file__).resolve().parents[2]


def test_the_document_is_what_the_commands_say() -> None:
    assert cli_docs.TARGET == ROOT / "docs" / "cli.md"
    assert cli_docs.TARGET.read_text() == cli_docs.render(), "run `make docs`"


def test_every_command_and_flag_is_there() -> None:
    text = cli_docs.render()
    for command in COMMANDS:
        assert f"`octavo {command}" in text
    for flag in ("--host", "--max-model-len", "--gpu-memory-utilization", "--served-model-name"):
        assert text.count(f"| `{flag} ") >= 1
