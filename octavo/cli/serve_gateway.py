"""`octavo serve --gateway-config`: an engine and a gateway in front of it, by one command.

The engine's server is a process of its own behind the Unix socket that the gateway's configuration
names; this process is the gateway. Clients are let in at once, and wait for nothing: until the
engine is ready, `/ready` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec

from octavo.config import EngineConfig, ServerConfig
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.gateway.config import GatewayConfig
    from octavo.gateway.config_backends import Backend

logger = logging.getLogger("octavo.gateway")

_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from octavo.cli.serve_gateway import engine_server; "
    "sys.exit(engine_server(int(sys.argv[1])))"
)
KILL_S = 10.0
"""How long the engine's server may take to end beyond its own patience."""


def serve_behind_gateway(
    engine: EngineConfig, server: ServerConfig, path: Path, *, has_own_ledger: bool
) -> int:
    """Serve until told to stop; the exit code: the engine's, where that ended first.

    Args:
        engine: as for `launch.serve`.
        server: likewise; it gets the socket and the ledger that the gateway's configuration names.
        path: of the gateway's configuration.
        has_own_ledger: the command line names the engine's ledger.

    Raises:
        StartupError: what keeps the gateway from starting.
    """
    from octavo.gateway.config import load_config
    from octavo.gateway.run import run_gateway
    from octavo.server.listen import bound
    from octavo.server.loop import new_loop

    config = load_config(path)
    names = server.served_model_names or (engine.model,)
    backend = backend_of(config, names, path)
    server = msgspec.structs.replace(
        server, uds=backend.address.socket, api_key_digests=(), served_model_names=names
    )
    if not has_own_ledger:
        # What the engine meters itself belongs where the gateway looks; else it is counted twice.
        url = config.ledger.url
        ledger = url.reveal() if backend.metered and url is not None else None
        server = msgspec.structs.replace(server, ledger=ledger)
    with bound(config.server) as listener:
        child = _start(engine, server)
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:

                async def both() -> int:
                    ended = asyncio.ensure_future(asyncio.to_thread(child.wait))
                    try:
                        return await run_gateway(path, config, listener, ends=ended)
                    finally:
                        with contextlib.suppress(ProcessLookupError):
                            child.send_signal(signal.SIGTERM)
                        patience_s = server.shutdown_timeout + KILL_S
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(asyncio.shield(ended), patience_s)
                        if child.poll() is None:
                            child.kill()
                        await ended

                code = runner.run(both())
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    return code or child.returncode


def backend_of(config: GatewayConfig, names: tuple[str, ...], path: Path) -> Backend:
    """The backend that stands for the engine of this command.

    Raises:
        ConfigError: there is none, or there are two.
    """
    found = {
        name: backend
        for name, backend in config.backends.items()
        if backend.address.socket and not set(names).isdisjoint(backend.models)
    }
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ConfigError(
            f"{path}: the backends {', '.join(found)} all have a Unix socket and the model "
            f"{names[0]}: which one is this engine? Give it another --served-model-name"
        )
    raise ConfigError(
        f"{path}: no backend stands for this engine: give one `url: unix:/path/engine.sock`, "
        f"`kind: octavo` and, in `models`, {names[0]!r}"
    )


def _start(engine: EngineConfig, server: ServerConfig) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOT, str(os.getpid()), *sys.path],
        stdin=subprocess.PIPE,
        stdout=2,  # standard output is the command's
        process_group=0,  # Ctrl-C in the terminal is for us alone
    )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin as pipe:  # its end is noticed elsewhere
        pipe.write(msgspec.msgpack.encode((engine, server)))
    return child


def engine_server(parent_pid: int) -> int:
    """All that the engine's server does, in its process; the exit code. Standard input tells what.

    It ends when the process that started it does.
    """
    from octavo.cli.main import print_error
    from octavo.engine.process import die_with
    from octavo.errors import OctavoError
    from octavo.launch import serve
    from octavo.observability.logs import configure_logs

    die_with(parent_pid)
    engine, server = msgspec.msgpack.decode(
        sys.stdin.buffer.read(), type=tuple[EngineConfig, ServerConfig]
    )
    configure_logs(server.log_level)
    try:
        return serve(engine, server)
    except OctavoError as error:
        print_error(str(error))
        return 1
