"""Runs jobs of `judge_worker` in processes that are ended when they take too long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.gateway import judge_worker
from octavo.gateway.judge import JudgeError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ANSWER_BYTES = 1 << 20
START_S = 10.0
"""Time that a process may take to start, before its first job."""

WAIT_S = 5.0
"""How long a job waits for its turn."""

_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""What an interpreter may need to start; the rest may be secret."""

_WORKER = str(Path(judge_worker.__file__))


class JudgeProcesses:
    """A few processes, started when there is work. Close it with `aclose`.

    Args:
        num: at most so many; one that is stuck until its time is up holds up only its part.
    """

    def __init__(self, num: int = 2) -> None:
        self._free = [_Worker() for _ in range(num)]
        self._all = list(self._free)
        self._turns = asyncio.Semaphore(num)

    async def run(self, job: Mapping[str, Any], *, time_limit: float) -> dict[str, Any]:
        """The worker's answer.

        Args:
            job: see `judge_worker`.
            time_limit: seconds, from when it is its turn.

        Raises:
            JudgeError: it takes too long, or the worker says that it cannot be done, or its turn
                does not come, as jobs before it take all of their time.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                await self._turns.acquire()
        except TimeoutError:
            raise JudgeError("too many judgements wait for a process") from None
        worker = self._free.pop()
        try:
            answer = await worker.run(job, time_limit)
        finally:
            self._free.append(worker)
            self._turns.release()
        if "error" in answer:
            raise JudgeError(str(answer["error"]))
        return answer

    async def aclose(self) -> None:
        """End the processes."""
        for worker in self._all:
            await worker.end()


class _Worker:
    """One process, or none yet."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, job: Mapping[str, Any], time_limit: float) -> dict[str, Any]:
        is_done = False
        try:
            process = await self._started()
            async with asyncio.timeout(time_limit):
                answer = await self._exchange(process, {**job, "limit": time_limit})
            is_done = True
        except TimeoutError:
            raise JudgeError(f"it takes longer than {time_limit:g} s") from None
        except (OSError, asyncio.LimitOverrunError, ValueError) as exc:
            raise JudgeError(f"the process for judgements fails: {exc}") from None
        finally:
            # Stuck, broken, or with an answer to come that nobody waits for any more.
            if not is_done:
                await self.end()
        return answer

    async def _exchange(
        self, process: asyncio.subprocess.Process, job: Mapping[str, Any]
    ) -> dict[str, Any]:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        await process.stdin.drain()
        return await self._line(process)

    async def _line(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise ValueError("it has ended")
        return msgspec.json.decode(line, type=dict[str, Any])

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                _WORKER,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                limit=MAX_ANSWER_BYTES,
            )
            try:
                async with asyncio.timeout(START_S):
                    await self._line(process)
            except TimeoutError:
                raise ValueError("it does not start") from None
        return self._process

    async def end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            # Not `process.kill`, which reaps a process that has just ended, and asyncio, which
            # waits for it, then finds it gone.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()
