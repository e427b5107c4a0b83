"""The book of all accounts: opens one for each HTTP request, gives each charge to its line, and
hands records on to the ledger, metrics and the log.

Belongs to the server's event loop, and nothing here waits for a disk: `RecordSink.put` must not.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from octavo.errors import EngineUnavailableError
from octavo.ledger.record import UsageRecord, from_nano
from octavo.observability.logs import BARE_LOGGER
from octavo.server.account import Account
from octavo.server.tags import MAX_FEATURES, MAX_TENANTS, DistinctCap, read_tags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from starlette.types import Scope

    from octavo.config import ServerConfig
    from octavo.engine.interface import EngineClient
    from octavo.observability.metrics import Metrics
    from octavo.server.account import UsageLine
    from octavo.types import Charge

usage_log = logging.getLogger(BARE_LOGGER)
"""One line of JSON for each record, where they are asked for."""

LATE_S = 600.0
"""Requests that ended longer ago and were never charged are recorded without."""

_encode = msgspec.json.Encoder(decimal_format="number").encode


class RecordSink(Protocol):
    """Where records go; `ledger.writer.LedgerWriter` is one."""

    def put(self, record: UsageRecord, /) -> object:
        """Take a record; never waits and never fails."""
        ...


class UsageBook:
    """All accounts of one server process. See the module.

    Args:
        engine: whose charges come here; the book becomes its listener.
        metrics: told of each record.
        config: has the name that records carry, the price, and whether they are logged.
        sink: where records go; None: nowhere but metrics and the log.
        listener: called with each record too; must not fail. None: nobody else wants to know.

    Attributes:
        sink: see above.
        waiting: lines by the engine's ids that are not charged yet.
        open_lines: those that have no record yet.
        features, tenants: keep the number of different values in bounds.
    """

    def __init__(
        self,
        engine: EngineClient,
        metrics: Metrics,
        config: ServerConfig,
        sink: RecordSink | None = None,
        listener: Callable[[UsageRecord], None] | None = None,
    ) -> None:
        self.model = config.served_model_names[0]
        self.hourly_rate_nano = config.hourly_rate_nano
        self.currency = config.currency
        self.sink = sink
        self.waiting: dict[str, UsageLine] = {}
        self.open_lines: set[UsageLine] = set()
        self.features = DistinctCap(MAX_FEATURES)
        self.tenants = DistinctCap(MAX_TENANTS)
        self._engine = engine
        self._metrics = metrics
        self._logs_usage = config.log_usage
        self._settled: asyncio.Event | None = None
        self._listener = listener
        if config.log_usage:
            usage_log.setLevel(logging.INFO)  # whatever else is logged
        engine.listen_for_charges(self.on_charge)

    def open(
        self,
        scope: Scope,
        arrived: float,
        *,
        metadata: Mapping[str, Any] | None = None,
        user: str | None = None,
    ) -> Account:
        """The account of an HTTP request whose body was read.

        Args:
            scope: the request's.
            arrived: when it came, `time.perf_counter()`.
            metadata: of its body, where it has such.
            user: who asks, by the body's word.

        Raises:
            InvalidRequestError: one of our headers is malformed, see `read_tags`.
        """
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        tags = read_tags(headers, metadata=metadata, user=user)
        num_capped = 0
        if tags.feature or tags.tenant:
            feature, tenant = self.features.admit(tags.feature), self.tenants.admit(tags.tenant)
            num_capped = (feature is not tags.feature) + (tenant is not tags.tenant)
            if num_capped:
                tags = msgspec.structs.replace(tags, feature=feature, tenant=tenant)
        if num_capped or tags.num_dropped:
            self._metrics.count_tags(tags.num_dropped, num_capped)
        return Account(self, tags, scope, arrived)

    def on_charge(self, engine_id: str, charge: Charge) -> None:
        """See `EngineClient.listen_for_charges`."""
        line = self.waiting.pop(engine_id, None)
        if line is not None:  # else it was refused, or given up
            line.charge(charge, is_known=bool(charge.total_ns) or self._is_engine_well)

    @property
    def is_metered(self) -> bool:
        """Whether the engine knows what requests cost: else a charge of nothing says nothing."""
        return self._engine.info.work is not None

    @property
    def _is_engine_well(self) -> bool:
        """Whether a charge of nothing can be believed: a dead one says so of all its requests."""
        try:
            self._engine.check_health()
        except EngineUnavailableError:
            return False
        return True

    def write(self, record: UsageRecord) -> None:
        """A record is made: keep it, count it and log it."""
        if self.sink is not None:
            self.sink.put(record)
        self._metrics.observe_usage(record)
        if self._listener is not None:
            self._listener(record)
        if self._logs_usage:
            usage_log.info("%s", log_line(record))

    def on_closed(self, line: UsageLine) -> None:
        """A line has its record, or needs none."""
        self.open_lines.discard(line)
        if self._settled is not None and not self.open_lines:
            self._settled.set()

    def expire(self) -> None:
        """Record what ended long ago and was never charged. No engine should need it."""
        limit = perf_counter() - LATE_S
        self._give_up([line for line in self.open_lines if line.ended_before(limit)])

    async def settle(self, timeout_s: float) -> None:
        """Wait until every request has its record, or so many seconds: then the rest is recorded
        without a charge. To be called when no more requests come, before the sink is closed.
        """
        if self.open_lines:
            self._settled = asyncio.Event()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._settled.wait()
            except TimeoutError:
                self._give_up(list(self.open_lines))

    def _give_up(self, lines: Iterable[UsageLine]) -> None:
        given_up = set(lines)
        self.waiting = {i: line for i, line in self.waiting.items() if line not in given_up}
        for line in given_up:
            line.give_up()


def log_line(record: UsageRecord) -> str:
    """The record as one line of JSON, with what follows from it."""
    fields = msgspec.structs.asdict(record)
    cost = from_nano(record.cost_nano) if record.hourly_rate_nano else None
    fields |= {"gpu_seconds": record.gpu_seconds, "cost": cost}
    return _encode({"event": "usage", **fields}).decode()
