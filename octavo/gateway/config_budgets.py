"""The section `budgets` of the configuration: what may be spent in a period, and who is told."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from octavo.gateway.backend_url import is_link_local
from octavo.gateway.secret import Secret
from octavo.ledger.record import HOUR_NS, NANO

Period = Literal["hour", "day", "month", "total"]

MAX_COUNT = 2**62
"""Above every ceiling, in nano-units, tokens or nanoseconds: sums stay within 64 bits."""

MAX_ALERTS = 10

_Patterns = tuple[Annotated[str, Meta(min_length=1)], ...]
_Dimension = Annotated[
    str, Meta(pattern=r"^(key|tenant|team|feature|model|tag:[a-z0-9][a-z0-9_.\-]{0,63})\Z")
]
_Alert = Annotated[float, Meta(gt=0, le=100)]
_Name = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,100}\Z")]


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One budget; at least one of the first three must be given.

    A request's worst case is reserved in all budgets that hold for it, or in none, before it is
    sent anywhere; what it did not use is given back at its end.

    Attributes:
        cost: of a period, in the backends' currency; at most 9 decimals.
        tokens: of a period, prompt and output.
        gpu_hours: device time of a period, in hours.
        period: `hour`, `day` or `month`, which begin and end in UTC, or `total`: of all time.
        kind: `hard`: requests whose worst case does not fit are refused; `soft`: they pass, and
            only alerts tell.
        per: what has a budget of its own: any of key, tenant, team, feature, model, tag:NAME;
            several: each combination; empty: one budget for all.
        holds_for: `all` requests that the patterns below let in, or `named`: only those of keys
            that name it in their `budgets`.
        features: it holds for these alone, shell patterns; empty: for all.
        tenants: likewise.
        teams: likewise.
        models: likewise, as the caller asks for them.
        tags: likewise: a tag's name, and the pattern that its value must match.
        alerts: parts of the budget that are told of when they are spent, once a period.
    """

    cost: Decimal | None = None
    tokens: Annotated[int, Meta(ge=1, le=10**15)] | None = None
    gpu_hours: Decimal | None = None
    period: Period = "month"
    kind: Literal["hard", "soft"] = "hard"
    per: tuple[_Dimension, ...] = ("key",)
    holds_for: Literal["all", "named"] = "all"
    features: _Patterns = ()
    tenants: _Patterns = ()
    teams: _Patterns = ()
    models: _Patterns = ()
    tags: dict[_Name, Annotated[str, Meta(min_length=1)]] = {}
    alerts: Annotated[tuple[_Alert, ...], Meta(max_length=MAX_ALERTS)] = (0.5, 0.8, 1.0)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: no ceiling is given, or one is not above 0, too large or too fine.
        """
        if self.cost is None and self.tokens is None and self.gpu_hours is None:
            raise ValueError("give at least one of cost, tokens and gpu_hours")
        _units("cost", self.cost, NANO)
        _units("gpu_hours", self.gpu_hours, HOUR_NS)
        if len(set(self.per)) != len(self.per):
            raise ValueError("per names something twice")

    @property
    def cost_nano(self) -> int | None:
        """The ceiling of costs, nano-units of the currency; None: there is none."""
        return _units("cost", self.cost, NANO)

    @property
    def device_ns(self) -> int | None:
        """The ceiling of device time, nanoseconds; None: there is none."""
        return _units("gpu_hours", self.gpu_hours, HOUR_NS)


class Webhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is told when a budget reaches a threshold: gets a POST with JSON.

    Attributes:
        url: `https://host/path` or `http://`. It may hold a secret, and is never shown. Redirects
            are not followed.
        secret: signs the body: the header `X-Octavo-Signature` is `sha256=` and the hexadecimal
            HMAC-SHA256 of the body; left out: there is no such header.
        budgets: only these budgets' alerts; empty: all.
        allow_link_local: it may be at an address that only the machine's own network has, where
            clouds keep their machines' credentials.
        timeout_s: of one try, seconds.
        max_tries: of one alert, with growing pauses between them.
    """

    url: Secret
    secret: Secret | None = None
    budgets: tuple[_Name, ...] = ()
    allow_link_local: bool = False
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5.0
    max_tries: Annotated[int, Meta(ge=1, le=20)] = 5

    def __post_init__(self) -> None:
        """Refuse what no webhook can have.

        Raises:
            ValueError: the URL is none, or points where it must not; says nothing of its text.
        """
        url = self.url.reveal()
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("url is not a URL: write https://host/path") from None
        if parts.scheme not in ("http", "https") or not host or not url.isascii() or " " in url:
            raise ValueError("url must begin with https:// or http://, and have a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must not have a user or password: use secret")
        if not self.allow_link_local and is_link_local(host):
            raise ValueError(
                "url points to a link-local address, where clouds keep their machines' "
                "credentials: set allow_link_local if that is meant"
            )


class BudgetsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All budgets, and where they are counted.

    Attributes:
        rules: name, and budget. A request is reserved in all that hold for it, or in none. A
            budget that is renamed begins anew.
        store: `memory`: each gateway process counts for itself, and forgets when it ends;
            `ledger`: in the database of `ledger.url`; `redis`: in the server of `redis_url`. All
            gateways that share one count together.
        on_failure: what happens to requests while the store does not answer: `refuse`: those that
            a hard budget holds for get a 503; `allow`: they pass, and what they used is counted
            when it is back.
        timeout_s: the store counts as failed when it takes longer, seconds.
        lease_s: reservations of a gateway that was killed end after this, seconds: they are renewed
            while it runs.
        when_lost: what then becomes of them: `count`: their worst case counts as spent, as nobody
            knows what they used; `release`: as not spent.
        webhooks: who is told of alerts, by name.
        redis_prefix: of all its keys there.
    """

    rules: dict[_Name, Budget] = {}
    store: Literal["memory", "ledger", "redis"] = "memory"
    on_failure: Literal["refuse", "allow"] = "refuse"
    timeout_s: Annotated[float, Meta(ge=0.01, le=60)] = 2.0
    lease_s: Annotated[float, Meta(ge=1, le=86_400)] = 60.0
    when_lost: Literal["count", "release"] = "count"
    webhooks: dict[_Name, Webhook] = {}
    redis_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9:._-]{1,100}\Z")] = "octavo"

    def __post_init__(self) -> None:
        """Refuse webhooks of budgets that are not there.

        Raises:
            ValueError: one names such a budget.
        """
        for name, webhook in self.webhooks.items():
            for budget in webhook.budgets:
                if budget not in self.rules:
                    raise ValueError(f"webhooks.{name}: there is no budget named {budget!r}")


def _units(name: str, amount: Decimal | None, per_unit: int) -> int | None:
    """An amount as a whole number of its smallest units.

    Raises:
        ValueError: it is not above 0, too large, or no whole number of them.
    """
    if amount is None:
        return None
    if not amount.is_finite() or not 0 < amount <= MAX_COUNT // per_unit:
        raise ValueError(f"{name} must be above 0 and at most {MAX_COUNT // per_unit}")
    numerator, denominator = amount.as_integer_ratio()
    units, rest = divmod(numerator * per_unit, denominator)
    if rest:
        raise ValueError(f"{name} is too fine: it has at most 9 decimals")
    return units
