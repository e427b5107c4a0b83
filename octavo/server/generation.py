"""Runs prompts on the engine and measures them; the one place where a request's end is counted.

Every generator here closes what it opened when it is closed, so the engine aborts at once.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from octavo.errors import EngineError, RequestError
from octavo.observability.metrics_requests import Siblings
from octavo.observability.tracing import start_call
from octavo.server.account import UsageLine
from octavo.types import Delta, RequestOptions, SamplingParams

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from octavo.engine.interface import EngineClient
    from octavo.observability.metrics import Metrics


_T = TypeVar("_T")


class Job(msgspec.Struct, frozen=True):
    """One prompt to run.

    Attributes:
        request_id: unique in the engine.
        prompt_token_ids: checked against the vocabulary and the context.
        params: how to sample.
        arrived: when the HTTP request came, `time.perf_counter()`.
        line: of the usage record.
        options: how to treat it; `timeout_s` counts from `arrived`.
        siblings: for metrics: sequences of the same prompt; None: there are no others.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrived: float
    line: UsageLine
    options: RequestOptions = RequestOptions()
    siblings: Siblings | None = None


async def run_job(engine: EngineClient, metrics: Metrics, job: Job) -> AsyncGenerator[Delta, None]:
    """The job's deltas; exactly the last one has a `finish_reason`, and never `error`.

    Raises:
        RequestError: before the first delta: the engine refuses the request.
        EngineError: the engine failed.
    """
    timer = metrics.start_request(
        job.arrived, max_tokens=job.params.max_tokens, siblings=job.siblings
    )
    timer.call = start_call(job.request_id, job.params, job.arrived)
    is_admitted = False
    stream = engine.generate(
        job.prompt_token_ids,
        job.params,
        request_id=job.request_id,
        options=with_time_left(job.options, job.arrived),
    )
    line, num_prompt = job.line, len(job.prompt_token_ids)
    line.open(job.request_id)
    try:
        async with aclosing(cast("AsyncGenerator[Delta, None]", stream)) as deltas:
            async for delta in deltas:
                is_admitted = True
                timer.on_delta(delta)
                if delta.finish_reason is None:
                    yield delta
                    continue
                line.end(delta.finish_reason, delta, timer.first_token_at)
                if delta.finish_reason == "error":
                    raise EngineError(delta.error or "no reason given")
                yield delta
                return
        raise EngineError("the output ended without a reason")
    except (GeneratorExit, asyncio.CancelledError):
        timer.finish("abort")
        line.end("abort", timer.newest, timer.first_token_at, num_input_tokens=num_prompt)
        raise
    except Exception as exc:
        if is_admitted or not isinstance(exc, RequestError):
            timer.finish("error")
            line.end("error", timer.newest, timer.first_token_at, num_input_tokens=num_prompt)
        else:
            line.refuse(job.request_id)
            timer.refuse(exc)
        raise


def with_time_left(options: RequestOptions, arrived: float) -> RequestOptions:
    """The options with the deadline counted from now; a missed one ends the request at once."""
    if options.timeout_s is None:
        return options
    left = options.timeout_s - (perf_counter() - arrived)
    return msgspec.structs.replace(options, timeout_s=max(left, 1e-6))


def run_jobs(
    engine: EngineClient, metrics: Metrics, jobs: Sequence[Job]
) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of all jobs, run at the same time, each with its job's index, as they come.

    Raises:
        RequestError: the engine refuses one of them; the others are aborted.
        EngineError: the engine failed.
    """
    return side_by_side([run_job(engine, metrics, job) for job in jobs])


async def side_by_side(
    streams: Sequence[AsyncGenerator[_T, None]],
) -> AsyncGenerator[tuple[int, _T], None]:
    """What the streams yield, run at the same time, each with its stream's index, as it comes.

    The first exception of one of them is raised here. All are closed at the end, whatever it is.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for item in stream:
                yield 0, item
        return

    queue: asyncio.Queue[tuple[int, _T] | Exception | None] = asyncio.Queue()

    async def pump(index: int, stream: AsyncGenerator[_T, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    queue.put_nowait((index, item))
        except Exception as exc:  # Raised where the items are read.
            queue.put_nowait(exc)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        num_open = len(streams)
        while num_open:
            got = await queue.get()
            if isinstance(got, Exception):
                raise got
            if got is None:
                num_open -= 1
            else:
                yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
