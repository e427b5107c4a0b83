"""One process's front end: the tokenizer, the application and the HTTP server over an engine.

The same for a server in one process and for each of several. Knows nothing of how an engine is
started.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.serving.ledger import CLOSE_S
from octavo.serving.loop import first_of

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Mapping

    from octavo.config import EngineConfig, ServerConfig
    from octavo.engine.supervisor import EngineSuccession
    from octavo.ledger.writer import LedgerWriter
    from octavo.observability.board import Board
    from octavo.server.http_server import HTTPServer
    from octavo.server.lifecycle import Lifecycle
    from octavo.serving.ledger import DeviceTimes
    from octavo.text.grammar.check import GrammarChecker
    from octavo.text.tokenizer import Tokenizer

GC_THRESHOLDS = (50_000, 20, 50)
"""When this process looks for cycles. A streamed token makes about ten objects that are gone at
once; at Python's 700, looking cost a twelfth of the time at 256 streams."""

LAST_ANSWERS_S = 1.0
"""How long answers that the engine has ended may take to leave."""


@dataclass
class StartTimes:
    """Readings of start-up, seconds.

    Attributes:
        begin: `time.perf_counter()` when `serve` was called.
        before_s: from the start of this process until then; None where it cannot be told.
        tokenizer_s, imports_s: both run beside the engine's start-up.
    """

    begin: float = field(default_factory=time.perf_counter)
    before_s: float | None = None
    tokenizer_s: float = 0.0
    imports_s: float = 0.0

    def read_before(self) -> None:
        """Fill `before_s`, which takes an import."""
        with contextlib.suppress(Exception):  # a nicety, and not every platform tells
            import psutil

            age = time.time() - psutil.Process().create_time()
            self.before_s = max(0.0, age - (time.perf_counter() - self.begin))


@dataclass(frozen=True)
class Text:
    """What a front end knows of the model: its tokenizer, and its defaults for sampling."""

    tokenizer: Tokenizer
    defaults: Mapping[str, Any]

    @property
    def eos_token_ids(self) -> list[int]:
        """Ids that end requests."""
        return sorted(self.tokenizer.eos_token_ids)

    def grammar_checker(self, vocab_size: int) -> GrammarChecker:
        """What tries out grammars for the model; the caller closes it."""
        from octavo.text.grammar.check import checker_for

        return checker_for(self.tokenizer, vocab_size)


async def load_front_end(config: EngineConfig, times: StartTimes) -> Text:
    """Load the tokenizer and import the server, side by side, and without blocking the loop.

    Raises:
        StartupError: the model's folder is not usable.
    """
    text, _ = await asyncio.gather(
        asyncio.to_thread(_load_text, config, times), asyncio.to_thread(_import_server, times)
    )
    return text


def _load_text(config: EngineConfig, times: StartTimes) -> Text:
    begin = time.perf_counter()
    from octavo.text.tokenizer import load_tokenizer
    from octavo.weights.open import open_checkpoint

    checkpoint = open_checkpoint(Path(config.model), load_format=config.load_format)
    try:
        metadata = checkpoint.config if checkpoint.format == "gguf" else None
        tokenizer = load_tokenizer(checkpoint.path, metadata)
    finally:
        checkpoint.close()
    times.tokenizer_s = time.perf_counter() - begin
    return Text(tokenizer, checkpoint.generation_config)


def _import_server(times: StartTimes) -> None:
    begin = time.perf_counter()
    import octavo.engine.client
    import octavo.engine.supervisor
    import octavo.server.app
    import octavo.server.http_server  # noqa: F401

    times.imports_s = time.perf_counter() - begin


class FrontEnd:
    """The application and its HTTP server, ready to serve.

    Args:
        engine: ready; the caller closes it, unless `drain` does.
        text: of the engine's model.
        config: names the model.
        listener: the socket to serve at.
        tls: how to speak TLS; None: plain HTTP.
        board: where to count; None: there is no other front end.
        ledger: takes usage records; closed here. None: there is none.
        times: writes the engine's device time into it; None: somebody else does.

    Raises:
        ConfigError: see `create_app` and `start_telemetry`.
    """

    def __init__(
        self,
        engine: EngineSuccession,
        text: Text,
        config: ServerConfig,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        board: Board | None = None,
        ledger: LedgerWriter | None = None,
        times: DeviceTimes | None = None,
    ) -> None:
        from octavo.observability.metrics import Metrics
        from octavo.observability.tracing import start_telemetry
        from octavo.server.app import create_app
        from octavo.server.http_server import HTTPServer

        self._grammars = text.grammar_checker(engine.info.vocab_size)
        metrics = Metrics(
            config.served_model_names[0],
            lambda: engine.stats,
            board,
            info=engine.info,
            check_health=engine.check_health,
            currency=config.currency,
        )
        self._ledger = ledger
        self._times = times
        if ledger is not None:
            metrics.follow_ledger(ledger)
        self._telemetry = start_telemetry(config)
        app = create_app(
            engine,
            text.tokenizer,
            config,
            metrics=metrics,
            defaults=text.defaults,
            grammars=self._grammars,
            telemetry=self._telemetry,
            ledger=ledger,
        )
        self._app = app
        self._engine = engine
        self.lifecycle: Lifecycle = app.context.lifecycle
        if board is not None:
            self.lifecycle.open_requests = board.open_requests
        self._http: HTTPServer = HTTPServer(
            app,
            listener,
            tls=tls,
            max_header_bytes=config.max_header_bytes,
            connections=None if board is None else board.connections,
        )
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Serve from now on; the task ends when the server does."""
        gc.freeze()  # what start-up left lives for good: collections need not walk it
        gc.set_threshold(*GC_THRESHOLDS)
        self._app.start()
        if self._times is not None:
            self._times.start()
        self._serving = asyncio.ensure_future(self._http.run_until_exit())
        return self._serving

    def close_door(self) -> None:
        """Take no more connections, where there are others who do."""
        self._http.stop_accepting()

    async def drain(self, patience_s: float, at_once: asyncio.Future[Any]) -> None:
        """End in good order: the door stays open, so that readiness can be asked and newcomers are
        told to go elsewhere, until the last request has its answer.

        Args:
            patience_s: how long requests get; what still runs then ends with `abort`.
            at_once: when it is done, there is no more patience.
        """
        assert self._serving is not None
        deadline = time.monotonic() + patience_s
        self.lifecycle.drain()
        idle = asyncio.ensure_future(self.lifecycle.wait_idle())
        await first_of(idle, self._serving, at_once, timeout_s=patience_s)
        idle.cancel()
        self._http.should_exit = True
        left_s = max(0.0, deadline - time.monotonic())
        await first_of(self._serving, at_once, timeout_s=left_s)  # last bytes leave
        if self._times is not None:
            await self._times.stop()
        await self._engine.close()  # what still runs ends with `abort`
        await asyncio.wait({self._serving}, timeout=LAST_ANSWERS_S)
        self._grammars.close()
        await self._end_books()

    async def stop(self) -> None:
        """Serve no longer, whatever runs."""
        self._grammars.close()
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait({self._serving})
        await self._end_books()

    async def _end_books(self) -> None:
        """Let the last records, spans and metrics out, for a bounded time."""
        await self._app.context.usage.settle(LAST_ANSWERS_S)
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            await asyncio.to_thread(ledger.close, CLOSE_S)
        if self._telemetry is not None:
            await asyncio.to_thread(self._telemetry.shutdown)
