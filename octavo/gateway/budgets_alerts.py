"""Tells of budgets that reach a threshold: by the log, by counters for metrics, and by webhooks.

Each threshold of each counter is told of once a period, by whichever gateway sees it first: the
budgets' store decides. All of it happens beside requests, and none waits for it.

A webhook is where the configuration says and nowhere else: no redirect is followed, no proxy of the
environment is used, and the address that is connected to is the one that was checked:
https://owasp.org/www-community/attacks/Server_Side_Request_Forgery
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.gateway.backend_url import is_link_local
from octavo.gateway.budgets_answers import row_of, time_text
from octavo.gateway.budgets_store import BudgetStoreError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from octavo.gateway.budgets_scope import Ceiling, CounterKey
    from octavo.gateway.budgets_store import Standing, Store
    from octavo.gateway.config_budgets import BudgetsSection, Webhook

logger = logging.getLogger("octavo.gateway")

REFUSED = "refused"
"""The threshold of a hard budget at which a request did not fit any more."""

CLAIM_S = 1.0
"""How often a store that does not answer is asked whether somebody has told already."""

PAUSE_S = 1.0
"""Before a webhook's second try; each later pause is four times as long, a minute at most."""

MAX_KNOWN = 10_000
"""Counters whose thresholds are remembered as told of; the store knows them all."""

_MAX_ANSWER_BYTES = 1024


class BudgetAlerts:
    """Alerts of one configuration's budgets. Belongs to one event loop.

    Args:
        section: of the configuration.
        store: knows what was told of.
        currency: of costs.

    Attributes:
        num_alerts: per budget and threshold (`0.8`, `refused`), those told of by this process.
        num_undelivered: webhooks' alerts that were given up.
    """

    def __init__(self, section: BudgetsSection, store: Store, *, currency: str = "USD") -> None:
        self.num_alerts: dict[tuple[str, str], int] = {}
        self.num_undelivered = 0
        self._section = section
        self._store = store
        self._currency = currency
        self._seen: dict[CounterKey, set[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def note(
        self, ceilings: Sequence[Ceiling], standings: Sequence[Standing], *, is_refused: bool
    ) -> None:
        """Look whether counters have reached thresholds; never waits.

        Args:
            ceilings: what the counters may reach.
            standings: how they stand.
            is_refused: they had no room for a request.
        """
        for ceiling, standing in zip(ceilings, standings, strict=True):
            budget = self._section.rules.get(ceiling.budget)
            if budget is None:
                continue
            part = ceiling.part(standing.used)
            reached = [f"{alert:g}" for alert in budget.alerts if part >= alert]
            if is_refused and budget.alerts:
                reached.append(REFUSED)
            seen = self._seen.get(ceiling.key)
            for threshold in reached:
                if seen is None or threshold not in seen:
                    if seen is None:
                        seen = self._remember(ceiling)
                    seen.add(threshold)
                    self._spawn(self._tell(ceiling, standing, threshold))

    async def close(self, timeout_s: float = 2.0) -> None:
        """Wait so long for webhooks that are being told, and give up the others."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if left:
            self.num_undelivered += len(left)
            logger.warning("%d alerts of budgets are not delivered", len(left))

    def _remember(self, ceiling: Ceiling) -> set[str]:
        if len(self._seen) >= MAX_KNOWN:
            self._seen.clear()
        return self._seen.setdefault(ceiling.key, set())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, ceiling: Ceiling, standing: Standing, threshold: str) -> None:
        while True:
            try:
                async with asyncio.timeout(self._section.timeout_s):
                    if not await self._store.claim(ceiling, threshold):
                        return
                break
            except (BudgetStoreError, TimeoutError):
                await asyncio.sleep(CLAIM_S)
        name = (ceiling.budget, threshold)
        self.num_alerts[name] = self.num_alerts.get(name, 0) + 1
        alert = self._alert(ceiling, standing, threshold)
        logger.warning("budget alert: %s", msgspec.json.encode(alert).decode())
        told = [
            self._deliver(hook_name, webhook, alert)
            for hook_name, webhook in self._section.webhooks.items()
            if not webhook.budgets or ceiling.budget in webhook.budgets
        ]
        await asyncio.gather(*told)

    def _alert(self, ceiling: Ceiling, standing: Standing, threshold: str) -> dict[str, object]:
        budget = self._section.rules[ceiling.budget]
        words = "\0".join((*map(str, ceiling.key), threshold))
        is_refusal = threshold == REFUSED
        return {
            "id": sha256(words.encode()).hexdigest()[:32],
            "event": "budget.refused" if is_refusal else "budget.threshold",
            "time": time_text(time.time_ns()),
            "threshold": None if is_refusal else float(threshold),
            **row_of(ceiling, budget.period, standing, self._currency),
        }

    async def _deliver(self, name: str, webhook: Webhook, alert: dict[str, object]) -> None:
        """Tell one webhook, again where that may help; never fails."""
        body = msgspec.json.encode(alert)
        pause_s = PAUSE_S
        for number in range(1, webhook.max_tries + 1):
            why, may_help = await self._post(webhook, body)
            if not why:
                return
            logger.warning("webhook %s, try %d: %s", name, number, why)
            if not may_help or number == webhook.max_tries:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(4 * pause_s, 60.0)
        self.num_undelivered += 1
        logger.error("webhook %s did not take the alert %s", name, alert["id"])

    async def _post(self, webhook: Webhook, body: bytes) -> tuple[str, bool]:
        """One try: what went wrong, or nothing, and whether another may go well."""
        import aiohttp

        headers = {"Content-Type": "application/json", "User-Agent": "octavo"}
        if webhook.secret is not None:
            digest = hmac.new(webhook.secret.reveal().encode(), body, sha256).hexdigest()
            headers["X-Octavo-Signature"] = f"sha256={digest}"
        try:
            async with (
                aiohttp.ClientSession(
                    connector=_connector(webhook.allow_link_local),
                    timeout=aiohttp.ClientTimeout(total=webhook.timeout_s),
                    cookie_jar=aiohttp.DummyCookieJar(),
                ) as session,
                session.post(
                    webhook.url.reveal(), data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                await answer.content.read(_MAX_ANSWER_BYTES)
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            # Not the error's text: it has the URL, which may be a secret.
            return f"cannot be reached ({type(error).__name__})", True
        if 200 <= status < 300:
            return "", True
        return f"answered {status}", status >= 500 or status in (408, 425, 429)


def _connector(allow_link_local: bool) -> Any:
    """Connections to addresses that were checked, for one request."""
    import aiohttp
    from aiohttp.abc import AbstractResolver

    class Resolver(AbstractResolver):
        def __init__(self) -> None:
            self._inner = aiohttp.ThreadedResolver()

        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
            found = await self._inner.resolve(host, port, family)
            if not allow_link_local and any(is_link_local(place["host"]) for place in found):
                raise OSError("its name leads to a link-local address")
            return found

        async def close(self) -> None:
            await self._inner.close()

    return aiohttp.TCPConnector(resolver=Resolver(), use_dns_cache=False, force_close=True)
