"""Runs one batch from its input file to its output files, from wherever it was left.

What was done is what the output files hold: they are scratch files until the batch ends, and a
process that goes on with a batch of another reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.batch_lines import LineError, ResultLine, read_line
from octavo.protocol.batches import BatchError, BatchErrors, BatchUsage, RequestCounts
from octavo.protocol.responses import InputTokensDetails, OutputTokensDetails
from octavo.server.batch_file import OutputFile, Summary, run_file
from octavo.server.batch_line import new_result_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    import httpx

    from octavo.protocol.batches import Batch, BatchStatus
    from octavo.server.state.batches import ClaimedBatch
    from octavo.server.state.files import FileStore

MAX_LINES = 50_000
"""Most requests of a batch (OpenAI's bound)."""

MAX_ERRORS = 100
"""Most errors of an input file that are told."""

FOREVER_S = float("inf")


class _Details(msgspec.Struct):
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct):
    """A usage of any route."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


class _Answer(msgspec.Struct):
    body: _Body


class _Result(msgspec.Struct):
    """What is summed up of a result."""

    response: _Answer


class _TwoFiles:
    """Results apart: those of requests that were answered, and the others."""

    def __init__(self, answered: OutputFile, failed: OutputFile) -> None:
        self._answered = answered
        self._failed = failed
        self.custom_ids = answered.custom_ids | failed.custom_ids
        self.lines = answered.lines | failed.lines

    def write(self, result: ResultLine) -> None:
        """See `batch_file.Results`."""
        (self._failed if result.is_failure else self._answered).write(result)


class BatchRun:
    """See the module.

    Args:
        claimed: the batch; this changes it as it goes on.
        files: where the input is and the outputs go.
        client: asks the application, as the batch's tenant.
        concurrency: most requests at a time.
        extra: fields of every request's body that does not have them.
        gate: waited for before each request; False: no more, the batch is left as it is.
        save: told of every step.
    """

    def __init__(
        self,
        claimed: ClaimedBatch,
        files: FileStore,
        client: httpx.AsyncClient,
        *,
        concurrency: int,
        extra: Mapping[str, Any],
        gate: Callable[[], Awaitable[bool]],
        save: Callable[[], Awaitable[object]],
    ) -> None:
        self.batch: Batch = claimed.batch
        self._tenant = claimed.tenant
        self._files = files
        self._client = client
        self._concurrency = concurrency
        self._extra = extra
        self._gate = gate
        self._save = save
        self._summary = Summary()
        self._done_before = RequestCounts()
        self._is_left = False

    def count(self) -> None:
        """Enter how far it is into the batch."""
        before, now = self._done_before, self._summary
        self.batch.request_counts = RequestCounts(
            self.batch.request_counts.total,
            before.completed + now.completed,
            before.failed + now.failed,
        )

    async def run(self) -> bool:
        """Run to the end; False: the gate closed before, and somebody can go on.

        Raises:
            OctavoError: the disk failed; somebody can go on later.
        """
        batch = self.batch
        if batch.cancelling_at is not None:
            await self.end("cancelled")
            return True
        source = await asyncio.to_thread(self._files.path, batch.input_file_id)
        errors, total = await asyncio.to_thread(check_input, source, batch.endpoint)
        if errors:
            batch.errors = BatchErrors(data=errors)
            batch.status, batch.failed_at = "failed", int(time.time())
            return True
        batch.status = "in_progress"
        batch.in_progress_at = batch.in_progress_at or int(time.time())
        batch.request_counts = RequestCounts(total)
        try:
            async with asyncio.timeout(max(0.0, batch.expires_at - time.time())):
                await self._run_lines(source)
        except TimeoutError:
            await self._fill_up(source)
            await self.end("expired")
            return True
        if self._is_left:
            return False
        await self.end("completed")
        return True

    @contextlib.asynccontextmanager
    async def _results(self) -> Any:
        paths = await self._scratch()
        with contextlib.ExitStack() as opened:
            outputs = [
                await asyncio.to_thread(opened.enter_context, OutputFile(path)) for path in paths
            ]
            answered, failed = outputs
            self._done_before = RequestCounts(
                self.batch.request_counts.total,
                len(answered.custom_ids),
                len(failed.custom_ids) + len(failed.lines),
            )
            self._summary = Summary()
            yield _TwoFiles(answered, failed)

    async def _scratch(self) -> list[Path]:
        names = (f"{self.batch.id}.{kind}.jsonl" for kind in ("output", "error"))
        return [await asyncio.to_thread(self._files.scratch, name) for name in names]

    async def _run_lines(self, source: Path) -> None:
        async with self._results() as results:
            await self._save()
            await run_file(
                self._client,
                source,
                results,
                self._summary,
                concurrency=self._concurrency,
                patience_s=FOREVER_S,
                extra=self._extra,
                gate=self._open_gate,
            )

    async def _open_gate(self) -> bool:
        if not self._is_left and not await self._gate():
            self._is_left = True
        return not self._is_left

    async def _fill_up(self, source: Path) -> None:
        """Give every request that has no result one that says why."""
        message = "The request was not run within the completion window"
        error = LineError("batch_expired", message)

        async with self._results() as results:

            def fill() -> None:
                for custom_id in _custom_ids(source):
                    if custom_id not in results.custom_ids:
                        result = ResultLine(id=new_result_id(), custom_id=custom_id, error=error)
                        results.write(result)
                        self._summary.failed += 1

            await asyncio.to_thread(fill)

    async def end(self, status: BatchStatus) -> None:
        """Keep what there is as files, and end the batch.

        Raises:
            OctavoError: the disk failed.
        """
        batch = self.batch
        self.count()
        now = int(time.time())
        batch.status, batch.finalizing_at = "finalizing", batch.finalizing_at or now
        if status == "completed":
            await self._save()
        output, errors = await self._scratch()
        batch.usage = await asyncio.to_thread(sum_usage, output)
        for path, kind in ((output, "output"), (errors, "error")):
            file_id = f"file-{batch.id.removeprefix('batch_')}{kind[0]}"
            size = await asyncio.to_thread(_size_of, path)
            if size == 0:
                await asyncio.to_thread(path.unlink, missing_ok=True)
            elif size or await self._files.get(file_id, self._tenant):
                await self._files.keep(
                    path,
                    self._tenant,
                    filename=f"{batch.id}_{kind}.jsonl",
                    purpose="batch_output",
                    created_at=now,
                    file_id=file_id,
                )
                setattr(batch, f"{kind}_file_id", file_id)
        batch.status = status
        setattr(batch, f"{status}_at", now)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _custom_ids(source: Path) -> Iterator[str]:
    with source.open("rb") as file:
        for data in file:
            if data.strip():
                yield read_line(data).custom_id


def check_input(source: Path, endpoint: str) -> tuple[list[BatchError], int]:
    """What is wrong with an input file, and how many requests it has."""
    errors: list[BatchError] = []
    seen: set[str] = set()

    def wrong(code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        if len(errors) < MAX_ERRORS:
            errors.append(BatchError(code=code, message=message, line=line, param=param))

    try:
        with source.open("rb") as file:
            for number, data in enumerate(file, 1):
                if not data.strip():
                    continue
                try:
                    line = read_line(data)
                except InvalidRequestError as exc:
                    wrong("invalid_request", exc.message, number, exc.param)
                    continue
                if line.url != endpoint:
                    message = f"url is {line.url}, and the batch's endpoint {endpoint}"
                    wrong("mismatched_endpoint", message, number, "url")
                if line.custom_id in seen:
                    message = f"custom_id: {line.custom_id!r} is in a line above, too"
                    wrong("duplicate_custom_id", message, number, "custom_id")
                seen.add(line.custom_id)
                if len(seen) > MAX_LINES:
                    wrong("too_many_requests", f"A batch takes at most {MAX_LINES} requests")
                    break
    except FileNotFoundError:
        wrong("file_not_found", "The input file was deleted")
    if not seen and not errors:
        wrong("empty_file", "The input file has no requests")
    return errors, len(seen)


def sum_usage(output: Path) -> BatchUsage | None:
    """The tokens of all results in a file; None: there is no file."""
    total, cached, reasoning = BatchUsage(), 0, 0
    decoder = msgspec.json.Decoder(_Result)
    try:
        with output.open("rb") as file:
            for data in file:
                usage = decoder.decode(data).response.body.usage
                if usage is None:
                    continue
                total.input_tokens += usage.prompt_tokens + usage.input_tokens
                total.output_tokens += usage.completion_tokens + usage.output_tokens
                for details in (usage.prompt_tokens_details, usage.input_tokens_details):
                    cached += details.cached_tokens if details else 0
                details = usage.output_tokens_details
                reasoning += details.reasoning_tokens if details else 0
    except FileNotFoundError:
        return None
    total.total_tokens = total.input_tokens + total.output_tokens
    total.input_tokens_details = InputTokensDetails(cached)
    total.output_tokens_details = OutputTokensDetails(reasoning)
    return total
