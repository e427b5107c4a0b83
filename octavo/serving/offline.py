"""The application over an engine process of its own, without a socket to listen at."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from octavo.serving.front_end import StartTimes, load_front_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from octavo.config import EngineConfig, ServerConfig
    from octavo.server.app import Application


@contextlib.asynccontextmanager
async def local_application(
    builder: str, engine: EngineConfig, server: ServerConfig
) -> AsyncIterator[Application]:
    """Start an engine; the application is ready within the context, and gone after it.

    Args:
        builder: what the engine process runs (see `engine.process.engine_process`).
        engine: `model` is a path, or a name that the model store knows.
        server: names the model; where to listen is not looked at.

    Raises:
        StartupError: anything that keeps the engine from starting.
    """
    from octavo.engine.client import AsyncEngine
    from octavo.engine.spawn import EngineProcess
    from octavo.server.app import create_app
    from octavo.weights import store

    engine = msgspec.structs.replace(engine, model=str(store.resolve(engine.model)))
    process = EngineProcess(builder, engine, log_level=server.log_level)
    try:
        text = await load_front_end(engine, StartTimes())
        client = await AsyncEngine.connect(
            process,
            tokenizer=text.tokenizer,
            eos_token_ids=text.eos_token_ids,
            max_num_queued_requests=server.max_num_queued_requests,
            watchdog_timeout_s=server.watchdog_timeout,
        )
        grammars = text.grammar_checker(client.info.vocab_size)
        try:
            yield create_app(
                client, text.tokenizer, server, defaults=text.defaults, grammars=grammars
            )
        finally:
            grammars.close()
            await client.close()
    finally:
        process.stop(0.0)
