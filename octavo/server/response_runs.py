"""Responses that run: in a request, or in the background, whoever waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import QueueFullError
from octavo.protocol.responses import (
    ReasoningConfig,
    Response,
    ResponseFailure,
    TextConfig,
)
from octavo.protocol.structured import TextFormat
from octavo.server.errors import as_request_error
from octavo.server.response_builder import ResponseBuilder
from octavo.server.state.database import StateError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from octavo.protocol.responses import ResponseRequest
    from octavo.server.context import ServerContext
    from octavo.server.lifecycle import Lifecycle
    from octavo.server.state.responses import ResponseStore
    from octavo.server.turn import ChatTurn

logger = logging.getLogger("octavo.server")

MAX_BACKGROUND = 1024
"""Most responses that run in the background of one server process."""

NEWS_S = 1.0
"""How often a background response says that it runs, and asks whether it shall, seconds."""

EVENTS_S = 0.05
"""The same for one whose events are kept, or that has not begun."""

LOST = "The server that computed this response ended before it was done"

_encode = msgspec.json.Encoder().encode


def asked_response(context: ServerContext, body: ResponseRequest, response_id: str) -> Response:
    """The response before it runs."""
    defaults = context.defaults

    def in_force(value: float | None, name: str) -> float:
        return float(defaults.get(name, 1.0) if value is None else value)

    text = body.text or TextConfig()
    return Response(
        id=response_id,
        created_at=int(time.time()),
        status="queued" if body.background else "in_progress",
        model=context.model_name,
        instructions=body.instructions,
        previous_response_id=body.previous_response_id,
        max_output_tokens=body.max_output_tokens,
        temperature=in_force(body.temperature, "temperature"),
        top_p=in_force(body.top_p, "top_p"),
        tools=body.tools or [],
        tool_choice=body.tool_choice or "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        max_tool_calls=body.max_tool_calls,
        text=TextConfig(text.format or TextFormat()),
        reasoning=body.reasoning or ReasoningConfig(),
        truncation=body.truncation or "disabled",
        top_logprobs=body.top_logprobs or 0,
        store=body.is_stored,
        background=bool(body.background),
        metadata=body.metadata or {},
        user=body.user,
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
    )


class ResponseRun:
    """One response while it runs.

    Args:
        context: the server's.
        store: where it goes.
        body: what is asked.
        turn: what answers.
        response: as it was asked for.
        tenant: whose it is.
        items: the JSON of its input items.
    """

    def __init__(
        self,
        context: ServerContext,
        store: ResponseStore,
        body: ResponseRequest,
        turn: ChatTurn,
        response: Response,
        *,
        tenant: str,
        items: bytes,
    ) -> None:
        self._context = context
        self._store = store
        self._body = body
        self._turn = turn
        self._tenant = tenant
        self._items = items
        self._builder = ResponseBuilder(
            response,
            context.tokenizer,
            has_logprobs=body.has_logprobs,
            has_events=bool(body.stream),
        )
        self._unsaid: list[tuple[int, bytes]] = []

    @property
    def response(self) -> Response:
        """As it is now."""
        return self._builder.response

    async def _grow(self) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        """Events as they come; the last ones are not kept anywhere yet."""
        builder, turn = self._builder, self._turn
        is_new = True
        try:
            async with aclosing(turn.parts()) as parts:
                async for part in parts:
                    if is_new:
                        yield builder.begin()
                        is_new = False
                    events = builder.add(part)
                    if part.finish_reason is not None:
                        events += builder.end(part.finish_reason, await turn.whole_usage())
                    yield events
        except Exception as exc:
            if is_new:
                raise
            yield builder.fail(as_request_error(exc, self.response.id))

    async def complete(self) -> Response:
        """Run to the end; the response, stored if it shall be.

        Raises:
            RequestError: the engine refuses the request, or there is no room in the store.
            EngineError: the engine failed.
        """
        builder, turn = self._builder, self._turn
        async with aclosing(turn.parts()) as parts:
            async for part in parts:
                builder.add(part)
                if part.finish_reason is not None:
                    builder.end(part.finish_reason, await turn.whole_usage())
        await self._keep()
        return self.response

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Run to the end, and tell; it is stored, if it shall be, before the end is told.

        Raises:
            RequestError: see `complete`.
            EngineError: the engine failed, before the first event.
        """
        async with aclosing(self._grow()) as grown:
            async for events in grown:
                if self.response.is_over:
                    await self._keep()
                yield b"".join(event for _, event in events)

    async def _keep(self) -> None:
        if self._body.is_stored:
            await self._store.add(
                self.response.id,
                self._tenant,
                _encode(self.response),
                self._items,
                previous_id=self._body.previous_response_id,
            )

    # In the background

    async def enter(self) -> None:
        """Store it as one that waits.

        Raises:
            StateError: that failed.
        """
        await self._store.add(
            self.response.id,
            self._tenant,
            _encode(self.response),
            self._items,
            previous_id=self._body.previous_response_id,
            is_over=False,
            has_events=bool(self._body.stream),
        )

    async def run(self) -> None:
        """Run to the end, or until somebody cancels or deletes it; store what comes of it."""
        growing = asyncio.ensure_future(self._collect())
        try:
            await self._report(growing)
        finally:
            growing.cancel()
            await asyncio.gather(growing, return_exceptions=True)
            if not self.response.is_over:
                self._unsaid += self._builder.cancel()
            await self._say(is_over=True)

    async def _collect(self) -> None:
        """Gather the events."""
        try:
            async with aclosing(self._grow()) as grown:
                async for events in grown:
                    self._unsaid += events
        except Exception as exc:  # before the first part
            self._unsaid += self._builder.begin()
            self._unsaid += self._builder.fail(as_request_error(exc, self.response.id))

    async def _report(self, growing: asyncio.Future[None]) -> None:
        """Tell the store how it goes, until it is over or unwanted."""
        said_at, status = time.monotonic(), self.response.status
        while not growing.done():
            is_hasty = self._body.stream or status == "queued"
            await asyncio.wait({growing}, timeout=EVENTS_S if is_hasty else NEWS_S)
            now = time.monotonic()
            is_due = self._unsaid or now - said_at >= NEWS_S or status != self.response.status
            if not growing.done() and is_due:
                said_at, status = now, self.response.status
                if not await self._say():
                    return

    async def _say(self, *, is_over: bool = False) -> bool:
        """Store what is new; whether to run on."""
        events, self._unsaid = self._unsaid, []
        response = self.response
        body = _encode(response if is_over else _without_output(response))
        try:
            return await self._store.update(response.id, body=body, is_over=is_over, events=events)
        except StateError:
            if is_over:
                logger.error("the response %s cannot be stored and is lost", response.id)
            self._unsaid = events + self._unsaid
            return True


def _without_output(response: Response) -> Response:
    """What is shown of a response that runs: its output is there when it is whole."""
    return msgspec.structs.replace(response, output=[])


def lost(body: bytes) -> Response:
    """A background response whose server is gone, from what it stored last."""
    response = msgspec.json.decode(body, type=Response)
    response.status = "failed"
    response.error = ResponseFailure("server_error", LOST)
    return response


class BackgroundRuns:
    """The responses that run in the background of this process; each is a task.

    Args:
        lifecycle: the server's; it counts them as requests.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def check_room(self) -> None:
        """Return if one more may run.

        Raises:
            QueueFullError: as many run as may.
        """
        if len(self._tasks) >= MAX_BACKGROUND:
            raise QueueFullError(
                f"{MAX_BACKGROUND} responses run in the background already",
                code="too_many_background_responses",
                retry_after_s=5,
            )

    async def start(self, run: ResponseRun) -> None:
        """Store it, and run it.

        Raises:
            RequestError: it cannot be stored, or the server drains.
        """
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._lifecycle.request())
            await run.enter()
            kept = opened.pop_all()
        response_id = run.response.id
        task = asyncio.create_task(run.run(), name=f"background {response_id}")
        self._tasks[response_id] = task

        def forget(_: asyncio.Task[None]) -> None:
            kept.close()
            del self._tasks[response_id]

        task.add_done_callback(forget)

    async def cancel(self, response_id: str) -> bool:
        """End one that runs here and wait for that; whether it did run here."""
        task = self._tasks.get(response_id)
        if task is None:
            return False
        task.cancel()
        await asyncio.wait({task})
        return True
