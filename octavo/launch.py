"""The composition root: puts model, engine process and HTTP server together, and takes them apart.

`serve` runs in the API server's process and never imports torch; `build_engine` runs in the engine
process. Everything slow is started as early as it can be: the engine process first, and while it
loads the model, this process imports the server and loads the tokenizer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.config import default_thread_waiting

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Mapping

    from octavo.config import EngineConfig, ServerConfig
    from octavo.engine.client import AsyncEngine
    from octavo.engine.core import EngineCore
    from octavo.engine.executor import DeviceExecutor
    from octavo.engine.pooling import PoolingCore
    from octavo.engine.spawn import EngineProcess
    from octavo.engine.supervisor import EngineSupervisor
    from octavo.runner.pooling import PoolingExecutor
    from octavo.server.http_server import HTTPServer
    from octavo.server.lifecycle import Lifecycle
    from octavo.text.tokenizer import Tokenizer
    from octavo.types import EngineInfo

logger = logging.getLogger("octavo")

ENGINE_BUILDER = "octavo.launch:build_engine"
EXIT_ENGINE_LOST = 70
"""Exit code when the engine failed too often: EX_SOFTWARE."""

GC_THRESHOLDS = (50_000, 20, 50)
"""When this process looks for cycles. A streamed token makes about ten objects that are gone at
once; at Python's 700, looking cost a twelfth of the time at 256 streams."""

LAST_ANSWERS_S = 1.0
"""How long answers that the engine has ended may take to leave."""


def serve(
    engine: EngineConfig,
    server: ServerConfig,
    *,
    builder: str = ENGINE_BUILDER,
) -> int:
    """Serve a model over HTTP until a signal; the exit code.

    0: ended by SIGTERM or SIGINT. 70: the engine process died or hung more often than
    `server.max_engine_restarts` lets it. 128 + the signal's number: a signal came before the server
    was ready. Call it from the main thread, with logs configured.

    Args:
        engine: `model` is a path, or a name that the model store knows.
        server: with port 0 the log tells which one it became.
        builder: what the engine process runs (see `engine.process.engine_process`).

    Raises:
        StartupError: anything that keeps the server from starting.
    """
    times = StartTimes()
    from octavo.server.listen import bound, tls_context
    from octavo.weights import store

    if not server.served_model_names:
        server = msgspec.structs.replace(server, served_model_names=(engine.model,))
    engine = msgspec.structs.replace(engine, model=str(store.resolve(engine.model)))
    tls = tls_context(server)
    with bound(server) as listener:
        from octavo.engine.spawn import EngineProcess

        def spawn() -> EngineProcess:
            return EngineProcess(builder, engine, log_level=server.log_level)

        service = _Service(spawn, spawn(), engine, server, listener, tls, times)
        try:
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                return runner.run(service.run())
        finally:
            service.process.stop(0.0)  # nothing to do after an orderly end


@dataclass(frozen=True)
class _BuiltEngine:
    core: EngineCore | PoolingCore
    info: EngineInfo
    executor: DeviceExecutor | PoolingExecutor

    def close(self) -> None:
        self.executor.close()


def build_engine(config: EngineConfig) -> _BuiltEngine:
    """Load the model and make the engine; for the engine process.

    Raises:
        StartupError: it cannot be loaded.
    """
    begin = time.perf_counter()
    default_thread_waiting()
    from octavo.engine.core import EngineCore
    from octavo.engine.pooling import PoolingCore
    from octavo.runner.executor import make_executor
    from octavo.runner.pooling import PoolingExecutor, PoolingRunner
    from octavo.runner.tasks import is_pooled
    from octavo.weights.open import open_checkpoint

    imported = time.perf_counter()
    checkpoint = open_checkpoint(Path(config.model), load_format=config.load_format)
    try:
        opened = time.perf_counter()
        core: EngineCore | PoolingCore
        executor: DeviceExecutor | PoolingExecutor
        if is_pooled(config, checkpoint):
            executor = PoolingExecutor(PoolingRunner(config, checkpoint))
            core = PoolingCore.from_config(executor, config)
        else:
            executor = make_executor(config, checkpoint)
            core = EngineCore.from_config(executor, config)
    finally:
        checkpoint.close()
    parts = {"imports": imported - begin, "open": opened - imported, **executor.info.startup_s}
    info = msgspec.structs.replace(
        executor.info, startup_s=parts, scheduling_policy=config.scheduling_policy
    )
    return _BuiltEngine(core, info, executor)


@dataclass
class _Service:
    """One serving life: start, serve, drain, stop. `process` is the newest engine process."""

    spawn: Callable[[], EngineProcess]
    process: EngineProcess
    engine_config: EngineConfig
    config: ServerConfig
    listener: socket.socket
    tls: ssl.SSLContext | None
    times: StartTimes

    async def run(self) -> int:
        """See `serve`."""
        signals = _Signals()
        start = asyncio.ensure_future(self._start())
        await _first_of(start, signals.first)
        if not start.done():
            start.cancel()
            await asyncio.wait({start})
            return 128 + signals.first.result()
        engine, http, lifecycle = start.result()
        try:
            return await self._serve(engine, http, lifecycle, signals)
        finally:
            await engine.close()

    async def _start(self) -> tuple[EngineSupervisor, HTTPServer, Lifecycle]:
        (tokenizer, defaults), _ = await asyncio.gather(
            asyncio.to_thread(self._load_text), asyncio.to_thread(self._import_server)
        )
        from octavo.engine.supervisor import EngineSupervisor
        from octavo.server.listen import listen, url_of

        engine = await self._connect(tokenizer)

        async def restart() -> AsyncEngine:
            self.process = self.spawn()
            return await self._connect(tokenizer)

        supervisor = EngineSupervisor(
            engine,
            restart,
            startup_s=time.perf_counter() - self.times.begin,
            max_restarts=self.config.max_engine_restarts,
        )
        try:
            http, lifecycle = self._make_server(supervisor, tokenizer, defaults)
            listen(self.listener)
        except BaseException:
            await engine.close()
            raise
        gc.freeze()  # what start-up left lives for good: collections need not walk it
        gc.set_threshold(*GC_THRESHOLDS)
        url = url_of(self.listener, is_tls=self.tls is not None)
        _log_start(engine, self.config, url, self.times)
        return supervisor, http, lifecycle

    async def _connect(self, tokenizer: Tokenizer) -> AsyncEngine:
        """The engine in `process`, once it is ready."""
        from octavo.engine.client import AsyncEngine

        return await AsyncEngine.connect(
            self.process,
            tokenizer=tokenizer,
            eos_token_ids=sorted(tokenizer.eos_token_ids),
            max_num_queued_requests=self.config.max_num_queued_requests,
            watchdog_timeout_s=self.config.watchdog_timeout,
        )

    def _load_text(self) -> tuple[Tokenizer, Mapping[str, Any]]:
        """The tokenizer, and the model's defaults for sampling."""
        begin = time.perf_counter()
        from octavo.text.tokenizer import load_tokenizer
        from octavo.weights.open import open_checkpoint

        engine = self.engine_config
        checkpoint = open_checkpoint(Path(engine.model), load_format=engine.load_format)
        try:
            metadata = checkpoint.config if checkpoint.format == "gguf" else None
            tokenizer = load_tokenizer(checkpoint.path, metadata)
        finally:
            checkpoint.close()
        self.times.tokenizer_s = time.perf_counter() - begin
        return tokenizer, checkpoint.generation_config

    def _import_server(self) -> None:
        begin = time.perf_counter()
        import octavo.engine.client
        import octavo.engine.supervisor
        import octavo.server.app
        import octavo.server.http_server  # noqa: F401

        self.times.imports_s = time.perf_counter() - begin
        with contextlib.suppress(Exception):  # a nicety, and not every platform tells
            import psutil

            age = time.time() - psutil.Process().create_time()
            self.times.before_s = max(0.0, age - (time.perf_counter() - self.times.begin))

    def _make_server(
        self, engine: EngineSupervisor, tokenizer: Tokenizer, defaults: Mapping[str, Any]
    ) -> tuple[HTTPServer, Lifecycle]:
        from octavo.observability.metrics import Metrics
        from octavo.server.app import create_app
        from octavo.server.http_server import HTTPServer

        metrics = Metrics(self.config.served_model_names[0], lambda: engine.stats)
        app = create_app(engine, tokenizer, self.config, metrics=metrics, defaults=defaults)
        http = HTTPServer(
            app, self.listener, tls=self.tls, max_header_bytes=self.config.max_header_bytes
        )
        return http, app.context.lifecycle

    async def _serve(
        self,
        engine: EngineSupervisor,
        http: HTTPServer,
        lifecycle: Lifecycle,
        signals: _Signals,
    ) -> int:
        """Serve, then drain: the door stays open, so that readiness can be asked and newcomers are
        told to go elsewhere, until the last request has its answer.
        """
        from octavo.engine.supervisor import WINDOW_S

        serving = asyncio.ensure_future(http.run_until_exit())
        watching = asyncio.ensure_future(engine.watch())
        try:
            await _first_of(serving, watching, signals.first)
            engine.stop_restarting()
            if serving.done():
                serving.result()  # not asked to end: only a failure can be the reason
            if watching.done():
                logger.error(
                    "%s, and is not started again after %d restarts within %.0f minutes",
                    watching.result(),
                    self.config.max_engine_restarts,
                    WINDOW_S / 60,
                )
                patience, code = LAST_ANSWERS_S, EXIT_ENGINE_LOST
            else:
                logger.info(
                    "stopping: %d running requests have up to %.0f s, a second signal ends them",
                    lifecycle.num_open,
                    self.config.shutdown_timeout,
                )
                patience, code = self.config.shutdown_timeout, 0
            deadline = time.monotonic() + patience
            lifecycle.drain()
            idle = asyncio.ensure_future(lifecycle.wait_idle())
            await _first_of(idle, serving, signals.second, timeout_s=patience)
            idle.cancel()
            http.should_exit = True
            left_s = max(0.0, deadline - time.monotonic())
            await _first_of(serving, signals.second, timeout_s=left_s)  # last bytes leave
            await engine.close()  # what still runs ends with `abort`
            await asyncio.wait({serving}, timeout=LAST_ANSWERS_S)
            return code
        finally:
            watching.cancel()
            serving.cancel()
            await asyncio.wait({watching, serving})


async def _first_of(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    """Wait until one of them is done, whatever its result, or time is up."""
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


class _Signals:
    """SIGINT and SIGTERM as futures of the running loop: the first one, and the second."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[int] = loop.create_future()
        self.second: asyncio.Future[int] = loop.create_future()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._on_signal, int(signum))

    def _on_signal(self, signum: int) -> None:
        if not self.first.done():
            self.first.set_result(signum)
        elif not self.second.done():
            self.second.set_result(signum)


@dataclass
class StartTimes:
    """Readings of start-up in this process, seconds.

    Attributes:
        begin: `time.perf_counter()` when `serve` was called.
        before_s: from the start of this process until then; None where it cannot be told.
        tokenizer_s, imports_s: both run beside the engine's start-up.
    """

    begin: float = field(default_factory=time.perf_counter)
    before_s: float | None = None
    tokenizer_s: float = 0.0
    imports_s: float = 0.0


def _log_start(engine: AsyncEngine, config: ServerConfig, url: str, times: StartTimes) -> None:
    from octavo.config import format_bytes

    info = engine.info
    cache = info.kv_cache
    total = time.perf_counter() - times.begin
    parts = {"process": engine.process_startup_s, **info.startup_s}
    if times.before_s is not None:
        parts = {"command": times.before_s, **parts}
        total += times.before_s
    logger.info(
        "model %s: %s, %s on %s",
        ", ".join(config.served_model_names),
        info.architecture,
        info.dtype,
        info.device,
    )
    logger.info(
        "KV cache: %d blocks of %d tokens, %d tokens, %s: %.1f sequences of %d tokens",
        cache.num_blocks,
        cache.block_size,
        cache.num_tokens,
        format_bytes(cache.num_blocks * cache.bytes_per_block),
        cache.num_tokens / info.max_model_len,
        info.max_model_len,
    )
    logger.info(
        "start-up took %.2f s: %s; beside them: tokenizer %.2f, server imports %.2f",
        total,
        ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items()),
        times.tokenizer_s,
        times.imports_s,
    )
    logger.info("ready at %s", url if url.startswith("unix:") else f"{url}/v1")


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for every platform
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
