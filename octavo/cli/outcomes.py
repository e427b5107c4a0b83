"""`octavo outcomes import`: what came of requests, out of files into a ledger or to a server."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from octavo.cli.cost import add_ledger_flag, ledger_url
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from octavo.planning.outcome_import import LineError
    from octavo.protocol.outcomes import OutcomeItem

    Sink = Callable[[list[OutcomeItem]], None]

EXIT_FAILED_LINES = 3
BATCH = 500
MAX_SHOWN_ERRORS = 20
TIMEOUT_S = 60.0

_EPILOG = f"""\
A file is CSV, with the names of fields in its first line, or has a JSON object a line:
  name,success,session_id,value,time,tag:channel
  ticket_resolved,true,s-1042,4.50,2026-11-28T09:30:00Z,email
  {{"name": "ticket_resolved", "success": true, "session_id": "s-1042", "value": 4.5}}
Each line needs name, success and one of request_id (the X-Request-Id of the answer), session_id,
trace_id; id, value, time and tags may be left out. An outcome whose id is there already is left as
it is, and a line without id gets one made of what it says: the same file may be imported again.

Exit codes: 0 all lines were imported, {EXIT_FAILED_LINES} some were wrong (told with their numbers;
the others were imported), 1 the import could not go on: run it again.

examples:
  octavo outcomes import tickets.csv
  octavo outcomes import tickets.jsonl --url http://127.0.0.1:8000
  psql -c "copy (select ...) to stdout with csv header" | octavo outcomes import -
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `outcomes` to the command line."""
    outcomes = subparsers.add_parser(
        "outcomes", help="what came of requests", description="What came of requests."
    )
    modes = outcomes.add_subparsers(dest="mode", metavar="MODE", required=True)
    parser = modes.add_parser(
        "import",
        help="read what came of requests from a file",
        description="Read what came of requests from a file, into a ledger or over HTTP to a "
        "server, so that reports can tell what a success costs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="CSV or JSON lines; - reads standard input")
    parser.add_argument(
        "--format",
        choices=("auto", "csv", "jsonl"),
        default="auto",
        help="auto: by the file's name, else by its first character (default: auto)",
    )
    add_ledger_flag(parser)
    parser.add_argument("--url", help="a server to send them to, instead of a ledger")
    parser.add_argument(
        "--api-key", metavar="KEY", help="sent to the server (default: $OCTAVO_API_KEY)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check the file, import nothing")
    parser.add_argument(
        "--json", action="store_true", help="the summary as JSON on standard output"
    )
    parser.set_defaults(run=run_import)


def run_import(args: argparse.Namespace) -> int:
    """Import a file; the exit code."""
    if args.url is not None and args.ledger is not None:
        raise ConfigError("--url and --ledger are two places: name one")
    if args.url is None and args.api_key is not None:
        raise ConfigError("--api-key is for a server: name it with --url")
    with _opened(args.file) as file, _sink(args) as sink, _Bar(args.file) as bar:
        num_read, num_imported, errors = _run(args, file, sink, bar)
    if args.json:
        import msgspec

        summary = {
            "read": num_read,
            "imported": num_imported,
            "failed": len(errors),
            "errors": errors,
        }
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
    else:
        done = "would be imported" if args.dry_run else "imported or there before"
        print(f"{num_imported} outcomes {done}, {len(errors)} lines wrong", file=sys.stderr)
    return EXIT_FAILED_LINES if errors else 0


def _run(
    args: argparse.Namespace, file: BinaryIO, sink: Sink, bar: _Bar
) -> tuple[int, int, list[LineError]]:
    """How many lines were outcomes or tried to be, how many were imported, and what was wrong."""
    from octavo.planning.outcome_import import LineError, guess_format, read_outcomes

    first = file.readline()
    suffix = "" if args.file == "-" else Path(args.file).suffix
    kind = guess_format(suffix, first) if args.format == "auto" else args.format
    errors: list[LineError] = []
    batch: list[OutcomeItem] = []
    num_imported = 0

    def flush() -> None:
        nonlocal num_imported
        if batch:
            sink(batch)
        num_imported += len(batch)
        batch.clear()
        bar.show(num_imported, len(errors))

    for found in read_outcomes(bar.counted(itertools.chain([first], file)), kind):
        if isinstance(found, LineError):
            errors.append(found)
            if len(errors) <= MAX_SHOWN_ERRORS:
                bar.say(f"{args.file}:{found.line}: {found.message}")
            elif len(errors) == MAX_SHOWN_ERRORS + 1:
                bar.say("more lines are wrong: --json has them all")
            continue
        batch.append(found)
        if len(batch) == BATCH:
            flush()
    flush()
    return num_imported + len(errors), num_imported, errors


def _opened(name: str) -> AbstractContextManager[BinaryIO]:
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {error.strerror}") from None


@contextmanager
def _sink(args: argparse.Namespace) -> Iterator[Sink]:
    """Takes outcomes to where they are kept; they are, when it returns."""
    if args.dry_run:
        yield lambda items: None
    elif args.url is not None:
        with _server(args) as sink:
            yield sink
    else:
        with _ledger(ledger_url(args)) as sink:
            yield sink


@contextmanager
def _ledger(url: str) -> Iterator[Sink]:
    from octavo.ledger.database import DatabaseUnavailableError
    from octavo.ledger.outcome_items import to_outcome
    from octavo.ledger.store import open_ledger

    now_ns = time.time_ns()
    try:
        with open_ledger(url, create=False) as ledger:

            def keep(items: list[OutcomeItem]) -> None:
                ledger.add_outcomes([to_outcome(item, item.id or "", now_ns) for item in items])

            yield keep
    except DatabaseUnavailableError as error:
        raise ConfigError(f"the ledger cannot be written: {error}; run the import again") from None


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[Sink]:
    import httpx
    import msgspec

    from octavo.bench.client import api_base
    from octavo.config import default_api_keys

    base = api_base(args.url)
    key = args.api_key or next(iter(default_api_keys()), None)
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    with httpx.Client(headers=headers, timeout=TIMEOUT_S) as client:

        def send(items: list[OutcomeItem]) -> None:
            body = msgspec.json.encode({"outcomes": items})
            try:
                response = client.post(f"{base}/outcomes", content=body)
            except httpx.HTTPError as error:
                raise ConfigError(f"no answer from {base}: {error}; run the import again") from None
            if response.status_code != 200:
                said = response.text[:300]
                with suppress(ValueError, KeyError, TypeError):
                    said = response.json()["error"]["message"]
                raise ConfigError(f"{base} answered {response.status_code}: {said}")

        yield send


class _Bar:
    """The progress on standard error, where that is a terminal."""

    def __init__(self, name: str) -> None:
        self._total = None if name == "-" else Path(name).stat().st_size

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.fields[text]}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=2,
        )
        self._task = self._progress.add_task("", total=self._total, text="outcomes")
        self._is_drawn = self._progress.console.is_terminal
        if self._is_drawn:
            self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._is_drawn:  # else it would print an empty line
            self._progress.stop()

    def counted(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """The lines, with their bytes counted as they are taken."""
        for line in lines:
            self._progress.advance(self._task, len(line))
            yield line

    def say(self, message: str) -> None:
        """A line above the bar."""
        self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def show(self, num_imported: int, num_wrong: int) -> None:
        """Draw how far it is."""
        wrong = f", {num_wrong} wrong" if num_wrong else ""
        self._progress.update(self._task, text=f"{num_imported} outcomes{wrong}")
