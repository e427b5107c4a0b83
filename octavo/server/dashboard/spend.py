"""What features cost: since the server began by its counters, and today by its ledger.

The ledger is read in a thread, and only while somebody looks: SQLAlchemy and the database are no
business of a server whose page nobody opens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from octavo.errors import OctavoError
from octavo.ledger.database import DatabaseUnavailableError
from octavo.observability.label_slots import UNTAGGED
from octavo.protocol.dashboard import DashboardLedger, DashboardSpend

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.ledger.totals import Totals
    from octavo.observability.metrics_usage import UsageMetrics

logger = logging.getLogger("octavo.server")

EVERY_S = 5.0
PAUSE = 20.0
"""How long the ledger is left alone while somebody looks, seconds, and at least how many times as
long as reading it took.
"""

NUM_FEATURES = 24

_DAY_NS = 86_400 * 10**9


def since_start(usage: UsageMetrics, *, has_price: bool) -> list[DashboardSpend]:
    """What features' ended requests used since the server began, the dearest first."""
    features = [
        DashboardSpend(
            feature="" if name == UNTAGGED else name,
            num_requests=int(num_requests),
            gpu_seconds=(prefill_ns + decode_ns) / 1e9,
            waste_seconds=waste_ns / 1e9,
            cost=cost_nano / 1e9 if has_price else None,
            currency=usage.currency,
            num_input_tokens=int(num_input),
            num_cached_tokens=int(num_cached),
            num_output_tokens=int(num_output),
        )
        for name, (
            prefill_ns,
            decode_ns,
            waste_ns,
            cost_nano,
            num_requests,
            num_input,
            num_cached,
            num_output,
        ) in usage.by_feature().items()
        if num_requests
    ]
    return sorted(features, key=lambda spend: -spend.gpu_seconds)


class LedgerToday:
    """Today's sums of a ledger, some seconds old while somebody asks for them.

    Args:
        url: of the ledger; None: there is none.
        has_price: whether a cost of nothing is a cost.
        clock: nanoseconds since 1970.
    """

    def __init__(
        self, url: str | None, *, has_price: bool, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._url = url
        self._has_price = has_price
        self._clock = clock
        self._last = DashboardLedger(state="off" if url is None else "reading")
        self._due_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def newest(self) -> DashboardLedger:
        """What was read last; has it read anew where that is due. Call it in the event loop."""
        is_free = self._task is None or self._task.done()
        if self._url is not None and is_free and time.monotonic() >= self._due_at:
            self._task = asyncio.ensure_future(self._refresh(self._url))
        return self._last

    async def _refresh(self, url: str) -> None:
        last, begin = self._last, time.monotonic()
        try:
            self._last = await asyncio.to_thread(self._read, url)
        except (OctavoError, DatabaseUnavailableError) as exc:
            self._last = _failed(last, str(exc))
        except Exception:  # A page must not show what nobody thought of, nor stop for it.
            logger.exception("the ledger could not be read for the dashboard")
            self._last = _failed(last, "reading it failed: the server's log says why")
        end = time.monotonic()
        took = 0.0 if last.state == "reading" else end - begin  # the first one imports, too
        self._due_at = end + max(EVERY_S, PAUSE * took)

    def _read(self, url: str) -> DashboardLedger:
        from octavo.ledger.store import open_ledger

        now_ns = self._clock()
        begin_ns = now_ns // _DAY_NS * _DAY_NS
        with open_ledger(url, create=False) as ledger:
            totals = ledger.totals(("feature",), begin_ns)
        totals.sort(key=lambda group: -(group.prefill_ns + group.decode_ns))
        return DashboardLedger(
            state="ok",
            day=time.strftime("%Y-%m-%d", time.gmtime(now_ns / 1e9)),
            read_at=now_ns / 1e9,
            features=[self._spend(group) for group in totals[:NUM_FEATURES]],
            num_more=max(0, len(totals) - NUM_FEATURES),
        )

    def _spend(self, group: Totals) -> DashboardSpend:
        return DashboardSpend(
            feature=group.key[0],
            num_requests=group.num_requests,
            gpu_seconds=(group.prefill_ns + group.decode_ns) / 1e9,
            waste_seconds=group.waste_ns / 1e9,
            cost=group.cost_nano / 1e9 if group.cost_nano or self._has_price else None,
            currency=group.currency,
            num_input_tokens=group.num_input_tokens,
            num_cached_tokens=group.num_cached_tokens,
            num_output_tokens=group.num_output_tokens,
        )


def _failed(last: DashboardLedger, why: str) -> DashboardLedger:
    return DashboardLedger(
        state="failed",
        message=why,
        day=last.day,
        read_at=last.read_at,
        features=last.features,
        num_more=last.num_more,
    )
