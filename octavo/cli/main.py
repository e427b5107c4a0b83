"""The `octavo` command: finds the subcommand, runs it, turns errors into one line and an exit code.

Knows nothing of what the commands do. A command is a module of this package with
`add_parser(subparsers)`, which describes its flags and sets the default `run`, a function of the
parsed arguments that returns the exit code. Only the module of the command at hand is imported;
`octavo --help` imports them all, so a command module must import nothing heavy at its top (no
torch, no HTTP client, no rich).
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING, Protocol, cast

from octavo.errors import OctavoError
from octavo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

COMMANDS: dict[str, str] = {
    "serve": "serve",
    "chat": "chat",
    "run": "run",
    "run-batch": "run_batch",
    "pull": "pull",
    "models": "models",
    "rm": "models",
    "bench": "bench",
    "cost": "cost",
    "outcomes": "outcomes",
    "gateway": "gateway",
    "keys": "keys",
}
"""Command, and the module of this package that has it. The order is the order of the help."""

_EXAMPLES = """\
examples:
  octavo pull smollm2                      fetch a small model once
  octavo serve smollm2                     OpenAI's API on http://127.0.0.1:8000/v1
  octavo chat                              talk to the server that runs here
  octavo run smollm2 "Why is the sky blue?"
  octavo bench serve --url http://127.0.0.1:8000 --concurrency 16

`octavo COMMAND --help` explains the flags of a command.
"""


class Command(Protocol):
    """What each command module exposes."""

    def add_parser(self, subparsers: Subparsers) -> None:
        """Add the command's parser; its `run` default is what does it and returns the exit code."""
        ...


def build_parser(names: Iterable[str]) -> argparse.ArgumentParser:
    """A parser that knows these commands; imports their modules and no others."""
    parser = argparse.ArgumentParser(
        prog="octavo",
        description="Serve, size, meter and govern open-weight language models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", required=True
    )
    modules = dict.fromkeys(COMMANDS[name] for name in names)  # one module may have two commands
    for module in modules:
        cast(Command, importlib.import_module(f"octavo.cli.{module}")).add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0: done. 1: an `OctavoError`, printed as one line. 2: wrong usage. 130: Ctrl-C. 141: whoever
    read our output has gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a model says may not fit the terminal's encoding, nor what is piped in.
            stream.reconfigure(errors="replace")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # a broken pipe shows here and not at interpreter exit
    except OctavoError as error:
        print_error(str(error))
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it exits; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code


def print_error(message: str) -> None:
    """`octavo: error: ...` on stderr, on one line whatever the message has in it."""
    print("octavo: error:", " ".join(message.split()), file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    name = next((word for word in arguments if not word.startswith("-")), None)
    if name is not None and name not in COMMANDS:
        print_error(_unknown(name))
        return EXIT_USAGE
    if not arguments:
        build_parser(COMMANDS).print_help()
        return EXIT_USAGE
    args = build_parser(COMMANDS if name is None else [name]).parse_args(arguments)
    code: int = args.run(args)
    return code


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean `octavo {close[0]}`?" if close else f"commands: {', '.join(COMMANDS)}"
    return f"there is no command {name!r}; {hint} See `octavo --help`"


if __name__ == "__main__":
    sys.exit(main())
