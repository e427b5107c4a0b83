"""All parts of a gateway that one configuration makes, built beside those that run.

A reload makes new ones and takes from the old what must outlive it: what limits have counted, which
replica has which prompt, and connections, breakers and keys where their sections are the same. The
old ones end when their last request does.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from octavo.gateway.absent import NoBudgets
from octavo.gateway.ceilings import worst_at
from octavo.gateway.config_routes import target_of
from octavo.gateway.dispatch import Dispatcher
from octavo.gateway.escalate import Escalation
from octavo.gateway.judge_build import build_judges
from octavo.gateway.judge_process import JudgeProcesses
from octavo.gateway.keys import KeyBook
from octavo.gateway.limits import open_limits
from octavo.gateway.model import Target, Tier
from octavo.gateway.policy import Router
from octavo.gateway.reading import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.gateway.budgets import BudgetBook
    from octavo.gateway.config import GatewayConfig
    from octavo.gateway.config_routes import TierSection
    from octavo.gateway.keys import KeySource
    from octavo.gateway.limits import RateLimits
    from octavo.gateway.model import Amount, Call, Price
    from octavo.gateway.seams import Records

logger = logging.getLogger("octavo.gateway")


class Parts:
    """See the module. Make and `start` it in the event loop; `retire` it when others take over.

    Args:
        config: checked.
        records: gets attempts.
        key_source: the ledger's keys; None: those of the configuration are all.
        ledger_url: for budgets that are counted there; empty: there is no ledger.
        before: the parts that run, whose counts and memory are taken over.

    Attributes:
        has_budgets: what a call can cost must be reserved.

    Raises:
        ConfigError: a certificate cannot be read, a judge's function cannot be had, or the client
            of Redis is not installed.
    """

    def __init__(
        self,
        config: GatewayConfig,
        *,
        records: Records,
        key_source: KeySource | None = None,
        ledger_url: str = "",
        before: Parts | None = None,
    ) -> None:
        self.config = config
        self.records = records
        self._before = before
        self.settings = read_settings(config)
        memory = None if before is None else before.router.memory
        self.router: Router = Router(config, memory)
        self._lengths = {
            (name, model): info.context_length
            for name, backend in config.backends.items()
            for model, info in backend.models.items()
        }
        processes = JudgeProcesses()
        judges = build_judges(
            config.judges,
            tier_of=lambda name: _tier(name, config.tiers[name]),
            processes=processes,
        )
        self.dispatcher = _dispatcher(config, before)
        self.escalation = Escalation(
            self.dispatcher,
            judges,
            worst=self.worst,
            records=records,
            section=config.escalation,
            processes=processes,
        )
        has_same_keys = before is not None and before.config.keys == config.keys
        self.keys: KeyBook
        self.keys = before.keys if before and has_same_keys else KeyBook(config.keys, key_source)
        redis_url = "" if config.redis_url is None else config.redis_url.reveal()
        previous = None if before is None else before.limits
        self.limits: RateLimits = open_limits(config.limits, redis_url, previous)
        self.has_budgets = bool(config.budgets.rules)
        self.budgets: BudgetBook | NoBudgets = NoBudgets()
        if self.has_budgets:
            from octavo.gateway.budgets import open_budgets

            self.budgets = open_budgets(
                config.budgets,
                ledger_url=ledger_url,
                redis_url=redis_url,
                currency=currency_of(config),
                previous=None if before is None else before.budget_book,
            )
        self.num_open = 0
        self._idle: asyncio.Event | None = None

    async def start(self) -> None:
        """Read keys, and begin to probe, where that is not done already."""
        before = self._before
        self._before = None
        if before is None or before.keys is not self.keys:
            await self.keys.start()
        if before is None or before.dispatcher is not self.dispatcher:
            self.dispatcher.start()

    @property
    def budget_book(self) -> BudgetBook | None:
        """Its budgets; None: there are none."""
        return None if isinstance(self.budgets, NoBudgets) else self.budgets

    def price(self, backend: str, model: str) -> Price | None:
        """What a model's answers cost; None: not known."""
        upstream = self.dispatcher.upstreams.get(backend)
        return None if upstream is None else upstream.prices.get(model)

    def worst(self, call: Call, target: Target) -> Amount | None:
        """The most that an attempt at a target can use; None: nobody knows."""
        price = self.price(target.backend, target.model)
        return worst_at(call, price, self._lengths.get((target.backend, target.model)))

    def leave(self) -> None:
        """A request that took these parts has ended."""
        self.num_open -= 1
        if not self.num_open and self._idle is not None:
            self._idle.set()

    async def retire(self, successor: Parts | None = None) -> None:
        """End when the last request has: at once where there is none.

        Args:
            successor: who has taken over; None: nobody, the gateway ends.
        """
        self._idle = asyncio.Event()
        try:
            if self.num_open:
                await self._idle.wait()
        finally:
            await self.close(successor)

    async def close(self, successor: Parts | None = None) -> None:
        """End, whatever runs."""
        for close in self._closers(successor):
            try:
                await close()
            except Exception:
                logger.exception("a part of the gateway did not end well")

    def _closers(self, successor: Parts | None) -> list[Callable[[], Any]]:
        closers: list[Callable[[], Any]] = [
            self.escalation.aclose,
            self.limits.close,
            self.budgets.close,
        ]
        shared = {} if successor is None else vars(successor)
        for name in ("keys", "dispatcher"):
            part = getattr(self, name)
            if shared.get(name) is not part:
                closers.append(part.close)
        store = self.limits.store
        if successor is None or successor.limits.store is not store:
            closers.append(store.close)
        book = self.budget_book
        its_book = None if successor is None else successor.budget_book
        if book is not None and (its_book is None or its_book.store is not book.store):
            closers.append(book.store.close)
        return closers


def _dispatcher(config: GatewayConfig, before: Parts | None) -> Dispatcher:
    """The one before, if all backends are the same; else one that keeps what is known of those
    that are, and their connections.
    """
    if before is None:
        return Dispatcher(config.backends)
    if before.config.backends == config.backends:
        return before.dispatcher
    return Dispatcher(config.backends, before.dispatcher)


def currency_of(config: GatewayConfig) -> str:
    """That of the prices: there is only one."""
    for backend in config.backends.values():
        for info in backend.models.values():
            if info.price is not None:
                return info.price.currency
    return "USD"


def _tier(name: str, section: TierSection) -> Tier:
    targets = tuple(
        Target(spec.backend, spec.model)
        for spec in map(target_of, (*section.targets, *section.fallbacks))
    )
    return Tier(name=name, targets=targets)
