"""Scripts for Redis in one line: what waits while an answer is on its way goes with the next batch.

Asking costs a few hundred microseconds of this process's time, most of it per round trip; together
requests share that. And Redis runs them in the order in which they were asked: what is given back
is back for who asks afterwards, without having been waited for.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BATCH = 200


class _Asked(NamedTuple):
    sha: str
    keys: Sequence[str]
    args: Sequence[Any]
    answer: asyncio.Future[list[Any]]


class ScriptLine:
    """Runs scripts, one batch at a time.

    Args:
        client: `redis.asyncio.Redis`.
        scripts: all that may be asked for, in Lua.
        timeout_s: for a batch.
        errors: what the client raises when Redis is not well; futures get it.
    """

    def __init__(
        self,
        client: Any,
        scripts: Sequence[str],
        timeout_s: float,
        errors: tuple[type[BaseException], ...],
    ) -> None:
        self._client = client
        self._scripts = {hashlib.sha1(text.encode()).hexdigest(): text for text in scripts}
        self._shas = {text: sha for sha, text in self._scripts.items()}
        self._timeout_s = timeout_s
        self._errors = errors
        self._waiting: list[_Asked] = []
        self._runner: asyncio.Task[None] | None = None

    def ask(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> asyncio.Future[Any]:
        """Run a script, after all that was asked before; its answer. A future that is cancelled
        does not keep the script from running.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(self._shas[script], keys, args, answer))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return answer

    async def drain(self) -> None:
        """Wait until everything was answered, or failed."""
        while self._runner is not None:
            await asyncio.wait((self._runner,))

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                try:
                    async with asyncio.timeout(self._timeout_s):
                        answers = await self._send(batch)
                except self._errors as error:
                    # Those behind would each wait as long, and for nothing.
                    batch, self._waiting = batch + self._waiting, []
                    answers = [error] * len(batch)
                for asked, answer in zip(batch, answers, strict=True):
                    if asked.answer.done():
                        continue
                    if isinstance(answer, BaseException):
                        asked.answer.set_exception(answer)
                    else:
                        asked.answer.set_result(answer)
        finally:
            self._runner = None

    async def _send(self, batch: Sequence[_Asked]) -> list[Any]:
        answers = await self._pipe(batch)
        unknown = [index for index, answer in enumerate(answers) if _is_unknown(answer)]
        if unknown:
            # Redis is new, or was started again: none of the batch has run.
            for text in self._scripts.values():
                await self._client.script_load(text)
            again = await self._pipe([batch[index] for index in unknown])
            for index, answer in zip(unknown, again, strict=True):
                answers[index] = answer
        return answers

    async def _pipe(self, batch: Sequence[_Asked]) -> list[Any]:
        pipe = self._client.pipeline(transaction=False)
        for asked in batch:
            pipe.evalsha(asked.sha, len(asked.keys), *asked.keys, *asked.args)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers


def _is_unknown(answer: object) -> bool:
    return type(answer).__name__ == "NoScriptError"
