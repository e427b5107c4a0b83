"""The engine process: starts up, tells how that went, then steps until it is told to end.

Never outlives its parent. Knows nothing of models or devices: what to run is built by the function
that the parent names. Nothing is pickled, and the parent decides about Ctrl-C.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import zmq

from octavo.config import EngineConfig, LogLevel
from octavo.engine.channel import ClientsChannel, EngineChannel, clients_address
from octavo.engine.clients import Clients
from octavo.engine.collector import collector_at_rest
from octavo.engine.messages import (
    AbortRequests,
    AddPooling,
    Admission,
    ClientGone,
    EngineFailed,
    EngineReady,
    EngineStarted,
    Ping,
    PoolingOutput,
    Shutdown,
    StepOutputs,
    TokenOutput,
)
from octavo.errors import InvalidRequestError, StartupError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from octavo.engine.messages import Output, ToEngine
    from octavo.types import Charge, EngineInfo, EngineStats

logger = logging.getLogger("octavo.engine")

EXIT_STARTUP_FAILED = 1
EXIT_ENGINE_FAILED = 70  # EX_SOFTWARE
EXIT_ORPHANED = 71
_PR_SET_PDEATHSIG = 1


class Core(Protocol):
    """What the loop asks of an engine core.

    Clients send it only what its `EngineInfo.tasks` say it does.
    """

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    @property
    def stats(self) -> EngineStats:
        """A snapshot."""
        ...

    def ready(self, began_ns: int, /) -> None:
        """Start-up is over; the process began at that `perf_counter_ns`."""
        ...

    def take_charges(self) -> list[tuple[str, Charge]]:
        """Of aborted requests, those that came to be known since the last call."""
        ...

    def add(self, request: Any, /) -> None:
        """Admit a request.

        Raises:
            InvalidRequestError: it can never run.
        """
        ...

    def abort(self, request_ids: Sequence[str], /) -> None:
        """Forget requests; unknown ids are ignored."""
        ...

    def step(self) -> Sequence[Output]:
        """Plan, run, update."""
        ...


class BuiltEngine(Protocol):
    """What a builder returns, ready to serve."""

    core: Core
    info: EngineInfo

    def close(self) -> None:
        """Free the device."""
        ...


class EngineStart(msgspec.Struct, frozen=True, kw_only=True):
    """What the parent writes to the engine process's standard input, as one line of JSON.

    Standard input stays open after it: its end means that the parent is gone.

    Attributes:
        address: where to connect.
        config: handed to the builder.
        log_level: least level that is logged.
        parent_pid: the process whose end must be ours.
        started_at: when the parent started us, `time.time()`.
        has_clients: several API servers come to `clients_address(address)`, and the parent sends no
            requests.
    """

    address: str
    config: EngineConfig
    log_level: LogLevel
    parent_pid: int
    started_at: float
    has_clients: bool = False


def engine_process(builder: str) -> int:
    """Everything that the engine process does; its exit code.

    Args:
        builder: `module:function`, from `EngineConfig` to `BuiltEngine`. It is imported only here,
            so that a failure of its imports is told like any other.
    """
    with collector_at_rest():
        start = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineStart)
        began_ns = time.perf_counter_ns() - max(round((time.time() - start.started_at) * 1e9), 0)
        die_with(start.parent_pid)
        _end_with_standard_input()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _on_terminate)
        channel = EngineChannel(start.address)
        channel.send(EngineStarted(time.time() - start.started_at))
        engine = _build(builder, start, channel)
        if engine is None:
            return EXIT_STARTUP_FAILED
        clients = None
        if start.has_clients:
            clients = Clients(ClientsChannel(clients_address(start.address)), engine.info)
    engine.core.ready(began_ns)
    channel.send(EngineReady(engine.info, engine.core.stats))
    try:
        run_engine_loop(engine.core, channel, clients)
    except Exception:
        logger.exception("the engine failed")
        return EXIT_ENGINE_FAILED
    engine.close()
    if clients is not None:
        clients.channel.close(linger_s=1.0)
    channel.close(linger_s=1.0)
    return 0


def _build(builder: str, start: EngineStart, channel: EngineChannel) -> BuiltEngine | None:
    """The engine; None: it failed, which is logged, and the parent told."""
    try:
        from octavo.observability.logs import configure_logs

        configure_logs(start.log_level)
        module, _, name = builder.partition(":")
        engine: BuiltEngine = getattr(importlib.import_module(module), name)(start.config)
    except StartupError as error:
        failure = EngineFailed(type(error).__name__, str(error))
    except Exception as error:
        logger.exception("the engine failed to start")
        failure = EngineFailed(type(error).__name__, str(error) or "no reason given")
    else:
        return engine
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent ends us when it has read this
    channel.send(failure)
    channel.close(linger_s=2.0)
    return None


def run_engine_loop(core: Core, channel: EngineChannel, clients: Clients | None = None) -> None:
    """Take what has come, step, send what came of it; until `Shutdown`.

    Every step sends one message, even if it produced no token, so that silence while there is work
    means that a step hangs. Without work the loop blocks.

    With several API servers each of them gets such a message, and the parent, whose channel this
    is, only when it asked for a sign of life.
    """
    while True:
        if not core.has_work:
            _wait(channel, clients)
        outputs: list[Output] = []
        has_changed = is_asked = False
        while (message := channel.receive()) is not None:
            if isinstance(message, Shutdown):
                return
            if isinstance(message, Ping):
                is_asked = True
                continue
            if isinstance(message, ClientGone):
                if clients is not None:
                    core.abort(clients.drop(message.name))
            else:
                outputs += _take(core, message)
            has_changed = True
        while clients is not None and (request := clients.receive(core.stats)) is not None:
            outputs += _take(core, request)
            has_changed = True
        if core.has_work:
            outputs += core.step()
            has_changed = True
        if clients is None:
            if has_changed or is_asked:
                channel.send(StepOutputs.of(outputs, core.stats, core.take_charges()))
            continue
        if has_changed:
            clients.send(outputs, core.stats, core.take_charges())
        if is_asked:
            channel.send(StepOutputs([], core.stats))


def _wait(channel: EngineChannel, clients: Clients | None) -> None:
    """Block until a message has come from anybody."""
    if clients is None:
        channel.wait()
        return
    poller = zmq.Poller()
    poller.register(channel.socket, zmq.POLLIN)
    poller.register(clients.channel.socket, zmq.POLLIN)
    poller.poll()


def _take(core: Core, message: ToEngine) -> list[Output]:
    """Hand one message to the core. What it refuses, ends here; nothing a client sends ends us."""
    if isinstance(message, AbortRequests):
        core.abort(message.request_ids)
        return []
    assert isinstance(message, Admission)
    try:
        core.add(message)
    except InvalidRequestError as error:
        return [_refusal(message, error.message)]
    except Exception as error:
        logger.exception("request %s could not be admitted", message.request_id)
        return [_refusal(message, f"the engine could not admit the request: {error}")]
    return []


def _refusal(message: Admission, error: str) -> Output:
    """The end of a request that did not begin."""
    if isinstance(message, AddPooling):
        return PoolingOutput(message.request_id, finish_reason="error", error=error)
    return TokenOutput(message.request_id, [], finish_reason="error", error=error)


def _on_terminate(signum: int, frame: FrameType | None) -> None:
    # A second one, or one that finds us on the way out, ends us there and then: an exception in
    # the interpreter's own clean-up would print a traceback.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(128 + signum)


def die_with(parent_pid: int) -> None:
    """See to it that this process ends when its parent does, in whatever way that does.

    On Linux the kernel kills us, whatever we are at. Elsewhere somebody must wait for the end of
    what only the parent holds the other end of.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it ended before the line above
            os._exit(EXIT_ORPHANED)


def _end_with_standard_input() -> None:
    """End this process, from a thread, when the parent closes its end of standard input."""

    def wait_for_end() -> None:
        while os.read(0, 4096):
            pass
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=wait_for_end, name="parent-watch", daemon=True).start()
