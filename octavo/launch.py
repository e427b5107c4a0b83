"""The composition root: puts model, engine process and HTTP server together, and takes them apart.

`serve` runs in the API server's process and never imports torch; `build_engine` runs in the engine
process. Everything slow is started as early as it can be: the engine process first, and while it
loads the model, this process imports the server and loads the tokenizer, or starts the processes
that do.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from octavo.config import default_gpu_allocator, default_thread_waiting

if TYPE_CHECKING:
    from octavo.config import EngineConfig, ServerConfig
    from octavo.engine.core import EngineCore
    from octavo.engine.executor import DeviceExecutor
    from octavo.engine.pooling import PoolingCore
    from octavo.engine.spawn import EngineProcess
    from octavo.runner.pooling import PoolingExecutor
    from octavo.text.grammar.compiler import GrammarCompiler
    from octavo.types import EngineInfo

ENGINE_BUILDER = "octavo.launch:build_engine"


def serve(
    engine: EngineConfig,
    server: ServerConfig,
    *,
    builder: str = ENGINE_BUILDER,
) -> int:
    """Serve a model over HTTP until a signal; the exit code.

    0: ended by SIGTERM or SIGINT. 70: the engine process died or hung more often than
    `server.max_engine_restarts` lets it, or API servers of several failed too often. 128 + the
    signal's number: a signal came before the server was ready. Call it from the main thread, with
    logs configured.

    Args:
        engine: `model` is a path, or a name that the model store knows.
        server: with port 0 the log tells which one it became.
        builder: what the engine process runs (see `engine.process.engine_process`).

    Raises:
        StartupError: anything that keeps the server from starting.
    """
    from octavo.serving.folders import run_folder, with_state_dir
    from octavo.serving.front_end import StartTimes
    from octavo.serving.loop import new_loop
    from octavo.serving.service import OneProcess, SeveralProcesses

    times = StartTimes()
    from octavo.observability.tracing import check_installed
    from octavo.server.listen import bound, tls_context
    from octavo.weights import store

    if not server.served_model_names:
        server = msgspec.structs.replace(server, served_model_names=(engine.model,))
    engine = msgspec.structs.replace(engine, model=str(store.resolve(engine.model)))
    check_installed(server)
    tls = tls_context(server)
    with bound(server) as listener, run_folder() as folder:
        server = with_state_dir(server, folder)
        has_several = server.api_server_count > 1
        from octavo.engine.spawn import EngineProcess

        def spawn() -> EngineProcess:
            return EngineProcess(
                builder,
                engine,
                log_level=server.log_level,
                has_clients=has_several,
                folder=folder if has_several else None,
            )

        kind = SeveralProcesses if has_several else OneProcess
        service = kind(spawn, spawn(), engine, server, listener, tls, times)
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
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


def _grammars(config: EngineConfig, vocab_size: int) -> GrammarCompiler:
    """What outputs may be bound to; it takes the tokenizer, which the engine does without."""
    from octavo.text.grammar.compiler import compiler_for
    from octavo.text.tokenizer import load_tokenizer
    from octavo.weights.open import open_checkpoint

    checkpoint = open_checkpoint(Path(config.model), load_format=config.load_format)
    try:
        metadata = checkpoint.config if checkpoint.format == "gguf" else None
        return compiler_for(load_tokenizer(checkpoint.path, metadata), vocab_size)
    finally:
        checkpoint.close()


def build_engine(config: EngineConfig) -> _BuiltEngine:
    """Load the model and make the engine; for the engine process.

    Raises:
        StartupError: it cannot be loaded.
    """
    from octavo.runner.early import head_start

    default_thread_waiting()
    default_gpu_allocator()
    with head_start(config):
        return _build_engine(config)


def _build_engine(config: EngineConfig) -> _BuiltEngine:
    begin = time.perf_counter()
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
            vocab_size = executor.info.vocab_size
            core = EngineCore.from_config(executor, config, lambda: _grammars(config, vocab_size))
    finally:
        checkpoint.close()
    parts = {"imports": imported - begin, "open": opened - imported, **executor.info.startup_s}
    info = msgspec.structs.replace(
        executor.info, startup_s=parts, scheduling_policy=config.scheduling_policy
    )
    return _BuiltEngine(core, info, executor)
