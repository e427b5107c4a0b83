"""Runs a file of requests and writes a file of results that can be gone on with.

Knows no terminal: who shows the progress is told of each result.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec

from octavo.errors import ConfigError, InvalidRequestError
from octavo.protocol.batch_lines import ResultLine, WrittenLine, read_line
from octavo.server.batch_line import refused_line, run_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Mapping
    from pathlib import Path

    import httpx

PATIENCE_S = 60.0
"""How long the server may take no requests before the run gives up, seconds."""


class _Counts(msgspec.Struct):
    """Tokens, by the names of either API."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _Body(msgspec.Struct):
    usage: _Counts | None = None


@dataclass
class Summary:
    """What a run did.

    Attributes:
        total: requests in the input; blank lines are none.
        skipped: whose results were there already.
        completed, failed: by this run.
        input_tokens, output_tokens: of the completed ones.
    """

    total: int = 0
    skipped: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def left(self) -> int:
        """Requests that have no result yet."""
        return self.total - self.skipped - self.completed - self.failed

    def add(self, result: ResultLine) -> None:
        """Count a result."""
        if result.is_failure or result.response is None:
            self.failed += 1
            return
        self.completed += 1
        usage = msgspec.json.decode(msgspec.json.encode(result.response.body), type=_Body).usage
        if usage is not None:
            self.input_tokens += usage.prompt_tokens + usage.input_tokens
            self.output_tokens += usage.completion_tokens + usage.output_tokens


class Results(Protocol):
    """Where results go, and which are there; see `OutputFile`."""

    @property
    def custom_ids(self) -> Container[str]:
        """Of the results that are there."""
        ...

    @property
    def lines(self) -> Container[int]:
        """Numbers of the lines that were no requests, of those."""
        ...

    def write(self, result: ResultLine) -> None:
        """Append a result.

        Raises:
            ConfigError: the disk is full, or gone.
        """
        ...


@dataclass
class OutputFile:
    """The results so far. A context: the file is open, and nobody else's, within it.

    Attributes:
        custom_ids: of the results that are there.
        lines: numbers of the lines that were no requests, of those.
    """

    path: Path
    custom_ids: set[str] = field(default_factory=set)
    lines: set[int] = field(default_factory=set)

    def __enter__(self) -> Self:
        """Open it, read what is there, and cut off a result that was not written to its end.

        Raises:
            ConfigError: it cannot be opened, holds something else, or another run writes it.
        """
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as exc:
            raise ConfigError(f"cannot write {self.path}: {exc.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise ConfigError(f"{self.path} is not a file: results are gone on with from one")
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"another run writes to {self.path}: wait for its end") from None
            self._read()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it, with everything on the disk."""
        os.fsync(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for number, data in enumerate(file, 1):
                if not data.endswith(b"\n"):
                    break
                whole += len(data)
                self._note(number, data)
        os.ftruncate(self._fd, whole)

    def _note(self, number: int, data: bytes) -> None:
        if not data.strip():
            return
        try:
            written = msgspec.json.decode(data, type=WrittenLine)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ConfigError(
                f"{self.path} has something else than results in line {number}: name another file"
            ) from None
        if written.custom_id is not None:
            self.custom_ids.add(written.custom_id)
        elif written.error is not None and written.error.line is not None:
            self.lines.add(written.error.line)

    def write(self, result: ResultLine) -> None:
        """Append a result, in one piece.

        Raises:
            ConfigError: the disk is full, or gone.
        """
        data = msgspec.json.encode(result) + b"\n"
        end = os.fstat(self._fd).st_size
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as exc:
            os.ftruncate(self._fd, end)
            raise ConfigError(f"cannot write {self.path}: {exc.strerror}") from None


def count_requests(path: Path) -> int:
    """How many requests a file has.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return sum(1 for data in file if data.strip())
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from None


def has_work(source: Path, output: OutputFile) -> bool:
    """Whether any request of a file has no result yet."""
    with source.open("rb") as file:
        for number, data in enumerate(file, 1):
            if data.strip() and number not in output.lines:
                try:
                    if read_line(data).custom_id not in output.custom_ids:
                        return True
                except InvalidRequestError:
                    return True
    return False


async def run_file(
    client: httpx.AsyncClient,
    source: Path,
    output: Results,
    summary: Summary,
    *,
    concurrency: int,
    progress: Callable[[], None] = lambda: None,
    patience_s: float | None = None,
    extra: Mapping[str, Any] | None = None,
    gate: Callable[[], Awaitable[bool]] | None = None,
) -> None:
    """Run every request of a file that has no result yet, and append the results.

    Args:
        client: asks.
        source: the requests.
        output: open.
        summary: counts; it is right whenever this ends.
        concurrency: most requests at a time.
        progress: called when `summary` has changed.
        patience_s: how long the server may take no requests; None: `PATIENCE_S`.
        extra: fields of every body that does not have them.
        gate: waited for before each request; False: no more of them.

    Raises:
        ServerAwayError: the server took no requests for so long.
        ConfigError: the output cannot be written.
    """
    patience_s = PATIENCE_S if patience_s is None else patience_s
    with source.open("rb") as file:
        lines = _open_lines(file, output, summary)

        def end(result: ResultLine) -> None:
            output.write(result)
            summary.add(result)
            progress()

        async def work() -> None:
            for number, data in lines:  # all workers draw from the same lines
                try:
                    line = read_line(data)
                except InvalidRequestError as exc:
                    end(refused_line(number, exc.message))
                    continue
                if line.custom_id in seen:
                    message = f"custom_id: {line.custom_id!r} is in a line above, too"
                    end(refused_line(number, message, "duplicate_custom_id"))
                    continue
                seen.add(line.custom_id)
                if line.custom_id in output.custom_ids:
                    summary.skipped += 1
                    progress()
                    continue
                if gate is not None and not await gate():
                    return
                end(await run_line(client, line, patience_s=patience_s, extra=extra))

        seen: set[str] = set()
        tasks = [asyncio.create_task(work()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _open_lines(
    file: Iterable[bytes], output: Results, summary: Summary
) -> Iterator[tuple[int, bytes]]:
    """The lines that are not known to be no requests, with their numbers."""
    for number, data in enumerate(file, 1):
        if not data.strip():
            continue
        if number in output.lines:
            summary.skipped += 1
        else:
            yield number, data
