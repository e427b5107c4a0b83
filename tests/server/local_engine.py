"""The real engine in the server's own thread, so that tests see real models through HTTP."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Any

from octavo import LLM
from octavo.engine.admission import check_options
from octavo.types import Charge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from octavo.types import Delta, EngineInfo, EngineStats, RequestOptions, SamplingParams


class LocalEngine:
    """An `EngineClient` over an `LLM`. Whoever waits for a token drives everybody's.

    Attributes:
        num_open: requests that are neither at their end nor closed.
        most_open: most of them at the same time.
    """

    def __init__(self, path: Path, **options: Any) -> None:
        settings: dict[str, Any] = {
            "dtype": "float32",
            "num_threads": 1,
            "kv_cache_memory": 16 * 1024**2,
            **options,
        }
        self.llm = LLM(str(path), **settings)
        self.num_open = 0
        self.most_open = 0
        self.listener: Callable[[str, Charge], None] = lambda request_id, charge: None

    def listen_for_charges(self, listener: Callable[[str, Charge], None]) -> None:
        self.listener = listener

    @property
    def info(self) -> EngineInfo:
        return self.llm.info

    @property
    def stats(self) -> EngineStats:
        return self.llm.stats

    def check_health(self) -> None:
        pass

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions,
    ) -> AsyncIterator[Delta]:
        check_options(options, self.info)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        charge = Charge()
        try:
            prompt: Any = {"prompt_token_ids": list(prompt_token_ids)}
            with closing(self.llm.stream(prompt, params)) as deltas:  # type: ignore[type-var]
                for delta in deltas:
                    charge = delta.charge or charge
                    yield delta
                    await asyncio.sleep(0)
        finally:
            self.num_open -= 1
            self.listener(request_id, charge)

    async def abort(self, request_id: str) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        self.llm.close()
