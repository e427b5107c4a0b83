"""Runs the batches that are there, one at a time, beside everything else that the server does.

Requests of batches go through the same application as everybody's, within this process. They give
way: there are only so many at a time, none begins while others wait for a place in the engine, and
where the engine has priorities theirs is low.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from octavo.errors import OctavoError
from octavo.server.batch_run import BatchRun
from octavo.server.state.database import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import ASGIApp

    from octavo.protocol.batches import Batch
    from octavo.server.context import ServerContext
    from octavo.server.state.batches import ClaimedBatch

logger = logging.getLogger("octavo.server")

CONCURRENCY = 32
"""Most requests of a batch at a time."""

POLL_S = 2.0
"""How often a process looks for batches that nobody runs, seconds."""

NEWS_S = 1.0
"""How often it tells how far a batch is, seconds."""

PAUSE_S = 30.0
"""How long a batch is left alone after the disk failed, seconds."""

LOW_PRIORITY = 1000

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+")
"""Names that baggage can carry."""

WAIT_S = 0.05
MOST_WAITS = 100
"""A batch's request waits for others at most so often, so that it is run some day."""


class BatchRuns:
    """See the module.

    Args:
        context: the server's.
        calls: the application as a tenant sees it from within.
    """

    def __init__(self, context: ServerContext, calls: Callable[[str], ASGIApp]) -> None:
        self._context = context
        self._calls = calls
        self._owner = uuid4().hex
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look for batches from now on, until the server drains."""
        if self._task is None:
            self._task = asyncio.create_task(self._loop(), name="batches")

    def nudge(self) -> None:
        """There may be something to do."""
        self.start()
        self._wake.set()

    async def _loop(self) -> None:
        await asyncio.to_thread(self._context.state.files.sweep)
        while not self._context.lifecycle.is_draining:
            self._wake.clear()
            try:
                claimed = await self._claim()
                if claimed is not None:
                    await self._run(claimed)
                    continue
            except Exception:
                logger.exception("batches stopped for %.0f s", PAUSE_S)
                await asyncio.sleep(PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()

    async def _claim(self) -> ClaimedBatch | None:
        """A batch that nobody runs."""
        if not await asyncio.to_thread(self._context.state.folder.has_database):
            return None
        try:
            return await self._context.state.batches.claim(self._owner)
        except StateError:  # the log has it
            await asyncio.sleep(PAUSE_S)
            return None

    async def _run(self, claimed: ClaimedBatch) -> None:
        """Run a batch as far as it goes."""
        import httpx  # not before there is a batch

        state, batch = self._context.state, claimed.batch
        transport = httpx.ASGITransport(self._calls(claimed.tenant), raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport,
            base_url="http://batch",
            timeout=None,
            headers={"baggage": _baggage(batch)},
        ) as client:
            run = BatchRun(
                claimed,
                state.files,
                client,
                concurrency=CONCURRENCY,
                extra=self._extra(),
                gate=self._gate,
                save=lambda: state.batches.save(batch, self._owner),
            )
            try:
                is_over = await self._watch(run)
                await state.batches.save(batch, self._owner, is_over=is_over)
                if not is_over:
                    await state.batches.release(batch.id, self._owner)
                else:
                    logger.info("batch %s: %s", batch.id, batch.status)
            except (OctavoError, OSError) as exc:
                logger.error("batch %s stopped, and is tried again: %s", batch.id, exc)
                await asyncio.sleep(PAUSE_S)
            except asyncio.CancelledError:
                await state.batches.release(batch.id, self._owner)
                raise

    async def _watch(self, run: BatchRun) -> bool:
        """Run it and tell of it; stop when it is cancelled. Whether it is over.

        Raises:
            OctavoError: the disk failed.
            OSError: so it did.
        """
        state, batch = self._context.state, run.batch
        work = asyncio.ensure_future(run.run())
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=NEWS_S)
                if work.done():
                    break
                run.count()
                if await state.batches.save(batch, self._owner):
                    continue
                work.cancel()
                await asyncio.wait({work})
                if not await state.batches.is_cancelled(batch.id):
                    return False  # somebody else runs it: this process was too slow to tell
                await run.end("cancelled")
                return True
            return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def _extra(self) -> Mapping[str, Any]:
        if self._context.engine.info.scheduling_policy == "priority":
            return {"priority": LOW_PRIORITY}
        return {}

    async def _gate(self) -> bool:
        """Wait while others wait; False: the server drains."""
        lifecycle, engine = self._context.lifecycle, self._context.engine
        for _ in range(MOST_WAITS):
            if lifecycle.is_draining or not engine.stats.num_waiting:
                break
            await asyncio.sleep(WAIT_S)
        return not lifecycle.is_draining


def _baggage(batch: Batch) -> str:
    """What each line's usage record says beside what the line itself does: the batch's labels."""
    labels = {**(batch.metadata or {}), "batch_id": batch.id}
    named = {name: value for name, value in labels.items() if _TOKEN.fullmatch(name)}
    return ",".join(f"{name}={quote(value)}" for name, value in named.items())
