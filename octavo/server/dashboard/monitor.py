"""Collects what the live page shows. Belongs to the server's event loop; knows no HTTP.

All that it reads is kept anyway. It adds a reading every two seconds, so that the page has a past
when somebody opens it, and takes note of each request's end.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import EngineUnavailableError
from octavo.observability.board_text import BoardText
from octavo.observability.metrics_engine import device_seconds
from octavo.protocol.dashboard import (
    DashboardData,
    DashboardEngine,
    DashboardNow,
    DashboardServers,
    DashboardState,
    DashboardTotals,
)
from octavo.server.dashboard.history import STEP_S, History, Reading
from octavo.server.dashboard.slowest import NUM_MINUTES, SlowRequests
from octavo.server.dashboard.spend import LedgerToday, since_start
from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.config import ServerConfig
    from octavo.engine.interface import EngineClient
    from octavo.observability.metrics import Metrics
    from octavo.server.lifecycle import Lifecycle

SLOWEST_BYTES = 12_000
"""Of the board, for the slowest requests of one server."""


class Monitor:
    """See the module.

    Args:
        engine: of the server.
        metrics: likewise.
        config: likewise.
        lifecycle: likewise.

    Attributes:
        slowest: wants to know of each request that has ended.
    """

    def __init__(
        self, engine: EngineClient, metrics: Metrics, config: ServerConfig, lifecycle: Lifecycle
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._config = config
        self._lifecycle = lifecycle
        self._history = History()
        has_price = config.price_per_device_hour is not None
        self._ledger = LedgerToday(config.ledger, has_price=has_price)
        self._started = time.time()
        self._task: asyncio.Task[None] | None = None
        self.slowest = SlowRequests(BoardText(metrics.board, SLOWEST_BYTES))

    def start(self) -> None:
        """Take readings from now on, as long as the event loop runs."""
        self._task = asyncio.create_task(self._run(), name="dashboard")

    async def _run(self) -> None:
        while True:
            self._read()
            self.slowest.publish(time.time_ns())
            # At the same moments in all API servers, so that any of them draws the same.
            await asyncio.sleep(STEP_S - time.time() % STEP_S)

    def _read(self) -> None:
        reading = Reading.of(
            self._engine.stats, self._metrics.requests, time.monotonic(), time.time()
        )
        self._history.add(reading)

    def data(self) -> DashboardData:
        """All that the page shows."""
        self._engine.ask_stats()  # an engine without requests sends none by itself
        if time.monotonic() - self._history.newest_at > 2 * STEP_S:
            self._read()
        stats, config, metrics = self._engine.stats, self._config, self._metrics
        requests, board = metrics.requests, metrics.board
        price = config.price_per_device_hour
        return DashboardData(
            now=time.time(),
            started=self._started,
            version=__version__,
            models=config.served_model_names,
            state=self._state(),
            engine=self._about_engine(),
            servers=DashboardServers(board.num_rows, board.num_restarts, stats.num_restarts),
            load=DashboardNow(
                num_running=stats.num_running,
                num_waiting=stats.num_waiting,
                num_open=self._lifecycle.open_requests.total,
                kv_usage=stats.kv_cache_usage,
            ),
            totals=DashboardTotals(
                ends={str(reason): num for reason, num in requests.finished.items()},
                num_rejected=requests.num_rejected,
                num_prompt_tokens=stats.num_prompt_tokens,
                num_output_tokens=stats.num_generation_tokens,
                num_preemptions=stats.num_preemptions,
                prefix_queries=stats.prefix_cache_queries,
                prefix_hits=stats.prefix_cache_hits,
            ),
            series=self._history.series(),
            price=None if price is None else float(price),
            currency=config.currency,
            device_seconds=device_seconds(stats.device_time),
            spend=since_start(metrics.usage, has_price=price is not None),
            ledger=msgspec.structs.replace(self._ledger.newest(), **metrics.usage.records()),
            slowest=self.slowest.newest(time.time_ns()),
            slow_s=NUM_MINUTES * 60.0,
            settings=self._settings(),
        )

    def _state(self) -> DashboardState:
        if self._lifecycle.is_draining:
            return DashboardState("draining")
        try:
            self._engine.check_health()
        except EngineUnavailableError as exc:
            return DashboardState(exc.code or "engine_dead", str(exc))
        return DashboardState("up")

    def _about_engine(self) -> DashboardEngine:
        info = self._engine.info
        return DashboardEngine(
            architecture=info.architecture,
            device=info.device,
            num_devices=info.num_devices,
            dtype=info.dtype,
            max_model_len=info.max_model_len,
            num_kv_tokens=info.kv_cache.num_tokens,
            tasks=info.tasks,
        )

    def _settings(self) -> dict[str, str]:
        config = self._config
        queue, days = config.max_num_queued_requests, config.ledger_retention_days
        return {
            "--api-server-count": str(config.api_server_count),
            "--max-num-queued-requests": "no bound" if queue is None else str(queue),
            "--scheduling-policy": self._engine.info.scheduling_policy,
            "--price-per-device-hour": (
                "none"
                if config.price_per_device_hour is None
                else f"{config.price_per_device_hour} {config.currency}"
            ),
            "--ledger": "none" if config.ledger is None else "kept",
            "--ledger-retention-days": "kept for good" if days is None else f"{days:g}",
            "--watchdog-timeout": f"{config.watchdog_timeout:g} s",
            "--max-engine-restarts": str(config.max_engine_restarts),
            "--shutdown-timeout": f"{config.shutdown_timeout:g} s",
            "--otlp-endpoint": "none" if config.otlp_endpoint is None else "given",
        }
