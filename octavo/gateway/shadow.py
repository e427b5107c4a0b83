"""Copies of requests to targets whose answers nobody sees.

They never delay a client or fail him: they are tasks of their own, bounded in number, and what goes
wrong in one is only on its record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from octavo.errors import OctavoError
from octavo.gateway.model import SHADOW_TIER, Tier
from octavo.gateway.replay import batches_of, is_stream

if TYPE_CHECKING:
    from octavo.gateway.model import Attempt, Call, Plan, Target
    from octavo.gateway.seams import Dispatch, Records

logger = logging.getLogger(__name__)

FIRST_NUMBER = 1000
"""Of a call's shadow attempts: after all others, whose number is not known yet."""


class Shadows:
    """Sends copies. Close it with `aclose`.

    Args:
        dispatch: sends.
        records: gets each shadow's attempt when it has ended.
        max_running: more are left out.
        deadline_s: for one.

    Attributes:
        num_skipped: copies that were left out, as too many ran.
    """

    def __init__(
        self, dispatch: Dispatch, records: Records, *, max_running: int, deadline_s: float
    ) -> None:
        self._dispatch = dispatch
        self._records = records
        self._max_running = max_running
        self._deadline_s = deadline_s
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_skipped = 0

    @property
    def num_running(self) -> int:
        """Copies that have not ended."""
        return len(self._tasks)

    def send(self, call: Call, plan: Plan, body: bytes) -> None:
        """Begin to send a call to the plan's shadows; does not wait."""
        for index, target in enumerate(plan.shadows):
            if len(self._tasks) >= self._max_running:
                self.num_skipped += 1
                continue
            run = self._run(call, plan, target, body, FIRST_NUMBER + index)
            task = asyncio.get_running_loop().create_task(run)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """End those that run."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, call: Call, plan: Plan, target: Target, body: bytes, number: int) -> None:
        attempts: list[Attempt] = []
        try:
            await self._copy(call, target, body, number, attempts)
        except OctavoError:
            pass  # it is on the record
        except Exception:
            logger.exception("a shadow of %s failed", call.request_id)
        finally:
            if attempts:
                self._records.attempts(call, plan, attempts)

    async def _copy(
        self, call: Call, target: Target, body: bytes, number: int, attempts: list[Attempt]
    ) -> None:
        reply = await self._dispatch.open(
            call,
            Tier(name=SHADOW_TIER, targets=(target,)),
            body,
            deadline=time.perf_counter() + self._deadline_s,
            failed=attempts.append,
            number=number,
        )
        status, reason = "error", "it was ended"
        try:
            if is_stream(reply):
                async with contextlib.aclosing(batches_of(reply)) as batches:
                    async for _ in batches:
                        pass
            else:
                await reply.read()
            status, reason = "ok", ""
        except OctavoError as exc:
            reason = str(exc)
        finally:
            attempts.append(await reply.close(tokens=reply.tokens, status=status, reason=reason))
