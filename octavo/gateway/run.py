"""A gateway's life: start, serve, reload, drain.

Signals: SIGTERM and SIGINT drain, a second one ends at once; SIGHUP reads the configuration anew.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import ConfigError
from octavo.gateway.admin_build import admin_routes
from octavo.gateway.admin_recent import RecentAttempts
from octavo.gateway.app import GatewayApplication
from octavo.gateway.config import load_config
from octavo.gateway.gateway_metrics import GatewayMetrics
from octavo.gateway.ledger import Ledger
from octavo.gateway.parts import Parts, currency_of
from octavo.server.http_server import HTTPServer
from octavo.server.listen import listen, tls_context, url_of
from octavo.server.loop import Signals, first_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from octavo.gateway.config import GatewayConfig

logger = logging.getLogger("octavo.gateway")

GC_THRESHOLDS = (10_000, 5, 5)
"""When this process looks for cycles. Requests leave none, connections do: at Python's own first
threshold looking costs time with every request, and much beyond this one memory grows by 8 KiB for
each connection that has gone (`benchmarks/cpu/gateway_streams.py`)."""

LAST_ANSWERS_S = 1.0
"""How long answers that we have ended may take to leave."""

_FIXED = ("host", "port", "uds", "ssl_certfile", "ssl_keyfile", "max_header_bytes", "log_level")
"""Fields of `server` that hold until the next start."""


class Gateway:
    """One gateway. Make it in the event loop.

    Args:
        path: of the configuration.
        config: as it was read from there, with what the command line says instead.
        listener: the socket to serve at; begins to listen when all is ready.

    Attributes:
        app: the application.
        http: its server.
    """

    def __init__(self, path: Path, config: GatewayConfig, listener: socket.socket) -> None:
        self._path = path
        self._fixed = config.server
        self._listener = listener
        self._tls = tls_context(config.server)
        self._ledger = Ledger(config)
        self.metrics = GatewayMetrics(currency_of(config), self._ledger.writer)
        self._recent = RecentAttempts()
        self.app = GatewayApplication(
            self._parts(config),
            self.metrics,
            admin_routes(
                lambda: self.parts,
                reload=self.reload,
                recent=self._recent,
                keys=self._ledger.keys,
                ledger_url=self._ledger.url,
            ),
        )
        self.http = HTTPServer(
            self.app,
            listener,
            tls=self._tls,
            max_header_bytes=config.server.max_header_bytes,
        )
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None

    @property
    def parts(self) -> Parts:
        """Those of the configuration in force."""
        return self.app.parts

    async def start(self) -> asyncio.Task[None]:
        """Let clients in; the task ends when the server does.

        Raises:
            ConfigError: the ledger cannot be used.
            AddressError: somebody else listens there by now.
        """
        await self._ledger.start()
        await self.parts.start()
        self.metrics.loaded = time.time()
        gc.freeze()  # what start-up left lives for good: collections need not walk it
        gc.set_threshold(*GC_THRESHOLDS)
        listen(self._listener)
        self._serving = asyncio.ensure_future(self.http.run_until_exit())
        return self._serving

    async def reload(self) -> dict[str, Any]:
        """Go over to the configuration as it is in its file now: whole, or not at all. Requests
        that run keep the old one until they end.

        Returns:
            What took effect, and what needs a new start.

        Raises:
            ConfigError: it is wrong; the old one goes on.
        """
        async with self._reloading:
            try:
                config = await asyncio.to_thread(load_config, self._path)
                old = self.parts
                new = self._parts(config, old)
                await new.start()
            except ConfigError as error:
                self.metrics.reloads["refused"] += 1
                logger.error("the configuration is wrong, and the old one goes on: %s", error)
                raise
            self.app.parts = new
            self.metrics.reloads["ok"] += 1
            self.metrics.loaded = time.time()
            task = asyncio.ensure_future(self._retire(old, new, list(self._retiring)))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            waits = self._needs_start(old.config, config)
            logger.info("the configuration was read anew from %s", self._path)
            if waits:
                logger.warning("takes effect with the next start: %s", ", ".join(waits))
            return {"status": "ok", "needs_start": waits}

    async def drain(self, at_once: asyncio.Future[int]) -> None:
        """End in good order: the door stays open, so that readiness can be asked and newcomers are
        told to go elsewhere, until the last request has its answer or patience ends.

        Args:
            at_once: when it is done, there is no more patience.
        """
        assert self._serving is not None
        app = self.app
        app.lifecycle.drain()
        idle = asyncio.ensure_future(app.lifecycle.wait_idle())
        patience_s = self.parts.config.server.shutdown_timeout
        await first_of(idle, self._serving, at_once, timeout_s=patience_s)
        if not idle.done():
            app.end_all()
            await first_of(idle, self._serving, timeout_s=LAST_ANSWERS_S)
        idle.cancel()
        self.http.should_exit = True
        await first_of(self._serving, timeout_s=LAST_ANSWERS_S)

    async def stop(self) -> None:
        """End, whatever runs, and let the last records out."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait({self._serving})
        if self.app.lifecycle.num_open:
            self.app.abort_all()
            idle = asyncio.ensure_future(self.app.lifecycle.wait_idle())
            await first_of(idle, timeout_s=LAST_ANSWERS_S)
            idle.cancel()
        for task in list(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self.parts.close()
        await self._ledger.close()

    async def _retire(self, old: Parts, new: Parts, earlier: list[asyncio.Task[None]]) -> None:
        """End parts after those before them, with which they may share some."""
        try:
            if earlier:
                await asyncio.wait(earlier)
        finally:
            await old.retire(new)

    def _parts(self, config: GatewayConfig, before: Parts | None = None) -> Parts:
        return Parts(
            config,
            records=self._recent.before(self._ledger.records(config)),
            key_source=self._ledger.keys,
            ledger_url=self._ledger.url,
            before=before,
        )

    def _needs_start(self, old: GatewayConfig, new: GatewayConfig) -> list[str]:
        waits = [
            f"server.{name}"
            for name in _FIXED
            if getattr(old.server, name) != getattr(new.server, name)
        ]
        return [*waits, "ledger"] if old.ledger != new.ledger else waits


async def run_gateway(
    path: Path,
    config: GatewayConfig,
    listener: socket.socket,
    *,
    ready: Callable[[], None] | None = None,
    ends: asyncio.Future[Any] | None = None,
) -> int:
    """Serve until a signal; the exit code, 0.

    Args:
        path: of the configuration, for reloads.
        config: checked.
        listener: has the address.
        ready: called when clients are let in.
        ends: as a signal would when it is done; None: signals alone.

    Raises:
        StartupError: what keeps it from starting.
    """
    signals = Signals()
    gateway = Gateway(path, config, listener)
    try:
        serving = await gateway.start()
        reloads = _follow_hangups(gateway)
        logger.info(
            "the gateway is ready at %s",
            url_of(listener, is_tls=config.server.ssl_certfile is not None),
        )
        if ready is not None:
            ready()
        waits: list[asyncio.Future[Any]] = [serving, signals.first]
        await first_of(*waits, *([] if ends is None else [ends]))
        if serving.done():
            serving.result()  # not asked to end: only a failure can be the reason
        logger.info("shutting down; %d requests run", gateway.metrics.num_open)
        await gateway.drain(signals.second)
        reloads.cancel()
    finally:
        await gateway.stop()
    return 0


def _follow_hangups(gateway: Gateway) -> asyncio.Task[None]:
    """Reload at every SIGHUP, one after another."""
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)

    async def follow() -> None:
        while True:
            await asked.wait()
            asked.clear()
            try:
                await gateway.reload()
            except ConfigError:
                pass  # it has been said
            except Exception:
                logger.exception("the configuration could not be read anew")

    return asyncio.ensure_future(follow())


def with_flags(config: GatewayConfig, **flags: Any) -> GatewayConfig:
    """A configuration whose `server` has what the command line says; None: as it is."""
    given = {name: value for name, value in flags.items() if value is not None}
    return msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, **given))


def serve(path: Path, config: GatewayConfig) -> int:
    """Serve in this process, from its main thread; the exit code. Logs are configured.

    Raises:
        StartupError: what keeps it from starting.
    """
    from octavo.server.listen import bound
    from octavo.server.loop import new_loop

    with bound(config.server) as listener, asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(run_gateway(path, config, listener))
