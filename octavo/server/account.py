"""One HTTP request's account: what was seen of it, what the engine charged, the records of both.

The two come in either order, and a record is made when both are there. One record for each request
that the engine took: a choice, a text to embed, a beam search. What the engine refused has none.
Belongs to the server's event loop.
"""

from __future__ import annotations

import asyncio
import time
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from octavo.ledger.record import UsageRecord
from octavo.observability.tracing import current_trace
from octavo.server.auth import tenant_of
from octavo.server.scope import exchange_of
from octavo.types import Charge

if TYPE_CHECKING:
    from starlette.types import Scope

    from octavo.server.metering import UsageBook
    from octavo.server.tags import RequestTags
    from octavo.types import Delta, FinishReason

_T = TypeVar("_T", bound=msgspec.Struct)

BACKEND = "octavo"

SETTLE_S = 10.0
"""How long an answer waits for what it cost, which takes the engine about a step."""

UNKNOWN_TAG = "octavo.charge"
"""The tag of a record whose engine died before it told: its device time is `unknown`, not none."""


class Cost(msgspec.Struct, frozen=True):
    """What a request cost, all of its choices together.

    Attributes:
        device_ns: None: not known, as the engine died, is slow to tell or does not meter.
        nano: in 1e-9 of the currency; None: that, or there is no price.
        currency: of the price.
    """

    device_ns: int | None
    nano: int | None
    currency: str

    @property
    def fields(self) -> dict[str, Any]:
        """As the usage of an answer has it, see `protocol.usage.CostFields`."""
        return {
            "gpu_seconds": _unit(self.device_ns),
            "cost": _unit(self.nano),
            "currency": self.currency,
        }


def _unit(nano: int | None) -> float | None:
    """So many 1e-9 as a number whose shortest decimal spelling is exact, up to 1e15 of them."""
    return None if nano is None else nano / 1e9


class Account:
    """One HTTP request, from its arrival to its last record. Get it from `UsageBook.open`.

    Attributes:
        arrived: `time.perf_counter()` when it came.
        tags: what it says of itself.
        request_id: what its records are called after; nobody else has it.
        parent_id: what the caller knows it by, where that is not `request_id`.
        route: its path.
        key: whose it is: the beginning of the API key's digest.
        trace_id: of the caller's trace, or of ours.
    """

    __slots__ = (
        "_book",
        "_cost_nano",
        "_device_ns",
        "_is_known",
        "_num_lines",
        "_num_open",
        "_settled",
        "arrived",
        "key",
        "parent_id",
        "request_id",
        "route",
        "tags",
        "trace_id",
    )

    def __init__(self, book: UsageBook, tags: RequestTags, scope: Scope, arrived: float) -> None:
        trace = current_trace()
        request_id, parent_id = exchange_of(scope).unique_id()
        self.arrived = arrived
        self.tags = tags
        self.request_id = request_id
        self.parent_id = tags.parent_id or parent_id
        self.route: str = scope["path"]
        self.key = tenant_of(scope)
        self.trace_id = tags.trace_id if trace is None else trace.trace_id
        self._book = book
        self._num_lines = 0
        self._num_open = 0
        self._device_ns = 0
        self._cost_nano = 0
        self._is_known = True
        self._settled: asyncio.Future[None] | None = None

    @property
    def includes_cost(self) -> bool:
        """Whether the answer shall say what it cost."""
        return self.tags.includes_cost

    def lines(self, num: int) -> list[UsageLine]:
        """Places for so many records, in the order of what they are for; those of the last call
        are used.
        """
        self._num_lines = num
        return [UsageLine(self._book, self, index) for index in range(num)]

    async def cost(self) -> Cost | None:
        """What it cost, once its requests have ended; None: the answer shall not say.

        Waits for the engine's last word, which comes after the end where that was decided here:
        by a stop string, or a deadline.
        """
        if not self.includes_cost:
            return None
        if self._num_open:
            self._settled = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._settled}, timeout=SETTLE_S)
        is_known = self._is_known and not self._num_open
        is_known &= bool(self._device_ns) or self._book.is_metered
        return Cost(
            self._device_ns if is_known else None,
            self._cost_nano if is_known and self._book.hourly_rate_nano else None,
            self._book.currency,
        )

    def on_open(self) -> None:
        """A line waits for its record."""
        self._num_open += 1

    def on_record(self, record: UsageRecord | None, *, is_known: bool = True) -> None:
        """A line waits no longer: it has a record, or its request was refused."""
        self._num_open -= 1
        self._is_known &= is_known
        if record is not None:
            self._device_ns += record.total_ns
            self._cost_nano += record.cost_nano
        if not self._num_open and self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def id_of(self, index: int) -> tuple[str, str]:
        """The record's id, and its parent's where it is not the request's own."""
        if self._num_lines > 1:
            return f"{self.request_id}-{index}", self.parent_id or self.request_id
        return self.request_id, self.parent_id


class UsageLine:
    """One record in the making: of one engine request, or of several that are one to the caller.

    `open` comes first, then in any order the charges and `end`.
    """

    __slots__ = ("_account", "_book", "_end", "_index", "_is_known", "_num_waiting", "_spent")

    def __init__(self, book: UsageBook, account: Account, index: int) -> None:
        self._book = book
        self._account = account
        self._index = index
        self._num_waiting = 0
        self._spent: Charge | None = None
        self._is_known = True
        self._end: _End | None = None

    def open(self, engine_id: str) -> None:
        """A request goes to the engine under this id."""
        if not self._is_open:
            self._account.on_open()
            self._book.open_lines.add(self)
        self._num_waiting += 1
        self._book.waiting[engine_id] = self

    def refuse(self, engine_id: str) -> None:
        """The engine did not take it: as if it had not been opened."""
        if self._book.waiting.pop(engine_id, None) is self:
            self._num_waiting -= 1
            if not self._is_open:
                self._account.on_record(None)
                self._book.on_closed(self)
        else:  # it was charged all the same
            self.end("error", None)

    @property
    def _is_open(self) -> bool:
        """Whether the engine took anything of it."""
        return bool(self._num_waiting) or self._spent is not None

    def end(
        self,
        reason: FinishReason,
        delta: Delta | None,
        first_token_at: float | None = None,
        *,
        num_input_tokens: int = 0,
    ) -> None:
        """What the caller sees has ended. The first call counts; later ones do nothing, and so does
        one where the engine took nothing.

        Args:
            reason: why.
            delta: the last one, which has the numbers of tokens; None: nothing came.
            first_token_at: `time.perf_counter()` when the first token came.
            num_input_tokens: where there is no delta.
        """
        if self._end is not None or not self._is_open:
            return
        self._end = _End(reason, perf_counter(), first_token_at, num_input_tokens)
        if delta is not None:
            self._end.num_input = delta.num_prompt_tokens or num_input_tokens
            self._end.num_cached = delta.num_cached_tokens
            self._end.num_output = delta.num_output_tokens
        if not self._num_waiting:
            self._record()

    def charge(self, charge: Charge, *, is_known: bool) -> None:
        """The engine's last word on one of the requests."""
        self._num_waiting -= 1
        self._is_known &= is_known
        before = self._spent
        self._spent = charge if before is None else _sum(before, charge)
        if not self._num_waiting and self._end is not None:
            self._record()

    def ended_before(self, when: float) -> bool:
        """Whether it ended before a reading of `time.perf_counter()`."""
        return self._end is not None and self._end.at < when

    def give_up(self) -> None:
        """Nothing more will come of it."""
        self._is_known &= not self._num_waiting
        self._num_waiting = 0
        self._spent = self._spent or Charge()
        if self._end is None:
            self.end("abort", None)
        else:
            self._record()

    def _record(self) -> None:
        account, book, end, spent = self._account, self._book, self._end, self._spent
        assert end is not None
        tags = account.tags
        request_id, parent_id = account.id_of(self._index)
        arrived, first = account.arrived, end.first_token_at
        record = UsageRecord(
            request_id=request_id,
            parent_id=parent_id,
            time_ns=time.time_ns(),
            feature=tags.feature,
            tenant=tags.tenant,
            key=account.key,
            session_id=tags.session_id,
            trace_id=account.trace_id,
            tags=tags.tags if self._is_known else {**tags.tags, UNKNOWN_TAG: "unknown"},
            route=account.route,
            backend=BACKEND,
            model=book.model,
            prefill_ns=0 if spent is None else spent.prefill_ns,
            decode_ns=0 if spent is None else spent.decode_ns,
            waste_ns=0 if spent is None else spent.waste_ns,
            num_input_tokens=end.num_input,
            num_cached_tokens=end.num_cached,
            num_output_tokens=end.num_output,
            ttft_ns=None if first is None else round(1e9 * (first - arrived)),
            e2e_ns=round(1e9 * (end.at - arrived)),
            finish_reason=end.reason,
            hourly_rate_nano=book.hourly_rate_nano,
            currency=book.currency,
        )
        account.on_record(record, is_known=self._is_known)
        book.write(record)
        book.on_closed(self)


class _End:
    """How a request ended, and when by `time.perf_counter()`."""

    __slots__ = ("at", "first_token_at", "num_cached", "num_input", "num_output", "reason")

    def __init__(
        self, reason: FinishReason, at: float, first_token_at: float | None, num_input: int
    ) -> None:
        self.reason = reason
        self.at = at
        self.first_token_at = first_token_at
        self.num_input = num_input
        self.num_cached = 0
        self.num_output = 0


def _sum(a: Charge, b: Charge) -> Charge:
    return Charge(a.prefill_ns + b.prefill_ns, a.decode_ns + b.decode_ns, a.waste_ns + b.waste_ns)


async def with_cost(usage: _T, account: Account) -> _T:
    """The usage of an answer whose requests have ended, with what they cost if that was asked for.

    Args:
        usage: has `CostFields`.
        account: of the HTTP request.
    """
    cost = await account.cost()
    return usage if cost is None else msgspec.structs.replace(usage, **cost.fields)
