"""Write `docs/cli.md` out of the command line's own parsers. `make docs` runs it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.cli.main import COMMANDS, build_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEADER = """\
# The command line

Written by `scripts/cli_docs.py` out of the commands' own help; `make docs` renews it.

An error is one line on standard error. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 Ctrl-C.
"""


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Every command below `parser` that takes no further command, and its line of help."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, child in action.choices.items():
            below = list(commands(child))
            yield from below or [(child, helps.get(name, ""))]


def names(action: argparse.Action) -> str:
    """`-q, --quiet` or `--port N` or `MODEL`, the same on every version of Python."""
    metavar = action.metavar
    if metavar is None and action.choices is not None:
        metavar = "{" + ",".join(map(str, action.choices)) + "}"
    value = metavar if isinstance(metavar, str) else action.dest.upper()
    if action.nargs in ("+", "*", "?"):
        value += {"+": " ...", "*": " ...", "?": ""}[str(action.nargs)]
    if not action.option_strings:
        return value
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")


def section(parser: argparse.ArgumentParser) -> str:
    """One command in Markdown."""
    lines = [f"## `{parser.prog}`", "", " ".join((parser.description or "").split())]
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if action.dest == "help" or action.help == argparse.SUPPRESS:
                continue
            text = " ".join(formatter._expand_help(action).split()) if action.help else ""
            cells = (f"`{names(action)}`".replace("|", r"\|"), text.replace("|", r"\|"))
            rows.append(f"| {cells[0]} | {cells[1]} |")
        if rows:
            title = {"positional arguments": "argument", "options": "option"}.get(
                group.title or "", group.title or ""
            )
            lines += ["", f"| {title} | |", "|---|---|", *rows]
    if parser.epilog:
        lines += ["", "```text", parser.epilog.strip("\n"), "```"]
    return "\n".join(lines) + "\n"


def render() -> str:
    """The whole file."""
    found = list(commands(build_parser(COMMANDS)))
    table = [f"| `{parser.prog}` | {text} |" for parser, text in found]
    index = "\n".join(["| command | does |", "|---|---|", *table]) + "\n"
    return "\n".join([HEADER, index, *(section(parser) for parser, _ in found)])


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(render())
