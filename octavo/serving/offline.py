"""The application over an engine process of its own, without a socket to listen at."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec

from octavo.serving.front_end import LAST_ANSWERS_S, StartTimes, load_front_end
from octavo.serving.ledger import CLOSE_S, DeviceTimes, open_writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from octavo.config import EngineConfig, ServerConfig
    from octavo.ledger.writer import LedgerWriter
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
    ledger: LedgerWriter | None = None
    try:
        text, ledger = await asyncio.gather(
            load_front_end(engine, StartTimes()), asyncio.to_thread(open_writer, server)
        )
        client = await AsyncEngine.connect(
            process,
            tokenizer=text.tokenizer,
            eos_token_ids=text.eos_token_ids,
            max_num_queued_requests=server.max_num_queued_requests,
            watchdog_timeout_s=server.watchdog_timeout,
        )
        grammars = text.grammar_checker(client.info.vocab_size)
        times = None if ledger is None else DeviceTimes(ledger, server, client)
        app: Application | None = None
        try:
            app = create_app(
                client,
                text.tokenizer,
                server,
                defaults=text.defaults,
                grammars=grammars,
                ledger=ledger,
            )
            if times is not None:
                times.start()
            yield app
        finally:
            grammars.close()
            if times is not None:
                await times.stop()
            await client.close()
            if app is not None:
                await app.context.usage.settle(LAST_ANSWERS_S)
    finally:
        process.stop(0.0)
        if ledger is not None:
            await asyncio.to_thread(ledger.close, CLOSE_S)
