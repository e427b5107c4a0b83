"""Cloud list prices: what the same tokens would cost elsewhere, per million tokens, exact.

Prices come from the package genai-prices, out of the data bundled with it (nothing is fetched), or
from a file of one's own (`cost_price_file`). Knows no ledger.

What is not in the comparison: writing to a provider's prompt cache (a ledger knows what was read
from a cache, not what was written), batch discounts, service tiers, and that another model's
tokenizer would have made another number of tokens of the same text.

Source: https://github.com/pydantic/genai-prices (the arithmetic is that of `ModelPrice.calc_price`,
and compared with it in the tests).
"""

from __future__ import annotations

import difflib
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import (
        ConditionalPrice,
        ModelInfo,
        ModelPrice,
        Provider,
        TieredPrices,
    )

MILLION = Decimal(1_000_000)


class PriceBand(msgspec.Struct, frozen=True, kw_only=True):
    """Prices of requests with more input tokens than `above`; per million tokens.

    Attributes:
        cached_input: of tokens read from a prompt cache; None: the list has no such price, and
            they cost what other input costs.
    """

    above: int = 0
    input: Decimal
    cached_input: Decimal | None = None
    output: Decimal


class TokenCounts(msgspec.Struct, frozen=True):
    """Tokens of some requests; `num_cached_tokens` are a part of `num_input_tokens`."""

    num_requests: int
    num_input_tokens: int
    num_cached_tokens: int
    num_output_tokens: int


class ListPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs by somebody's price list.

    Attributes:
        name: as it was asked for.
        model: as the list names it, `provider/model`.
        source: the list, and of which date it is: one line for a reader.
        bands: rising, the first one above 0 tokens.
        per_request: a charge beside the tokens'.
    """

    name: str
    model: str
    source: str
    currency: str = "USD"
    bands: tuple[PriceBand, ...]
    per_request: Decimal = Decimal(0)

    def band_of(self, num_input_tokens: int) -> PriceBand:
        """The prices of a request of that length: a long one pays the higher price for all."""
        return next(b for b in reversed(self.bands) if num_input_tokens > b.above or not b.above)

    def cost(self, counts: TokenCounts, band: PriceBand) -> Decimal:
        """What requests cost whose length lies in this band, exact.

        Args:
            counts: of all of them together.
            band: one of `bands`.
        """
        cached_price = band.input if band.cached_input is None else band.cached_input
        num_fresh = counts.num_input_tokens - counts.num_cached_tokens
        tokens = (
            num_fresh * band.input
            + counts.num_cached_tokens * cached_price
            + counts.num_output_tokens * band.output
        )
        return tokens / MILLION + counts.num_requests * self.per_request


def thresholds_of(prices: Iterable[ListPrice]) -> tuple[int, ...]:
    """Lengths of inputs at which any of the prices changes, rising."""
    return tuple(sorted({band.above for price in prices for band in price.bands} - {0}))


def choose_prices(
    names: Sequence[str], own: Mapping[str, ListPrice], *, now: datetime | None = None
) -> list[ListPrice]:
    """The list prices by these names: one's own list goes before the package's.

    Args:
        names: empty: all of one's own list.
        own: by name, as `cost_price_file.read_price_file` gives them.
        now: of which time prices are taken; None: today's.

    Raises:
        ConfigError: nobody lists the name, or not by the token; the message has close names.
    """
    if not names:
        return list(own.values())
    when = datetime.now(UTC) if now is None else now
    return [own[name] if name in own else package_price(name, when) for name in names]


def package_price(name: str, when: datetime) -> ListPrice:
    """The price that genai-prices lists.

    Args:
        name: as a provider's API takes it (`gpt-5-mini`), or `provider/model`.
        when: whose day's prices are taken. Prices of certain hours of the day are left out: the
            one that holds at all hours counts.

    Raises:
        ConfigError: see `choose_prices`.
    """
    snapshot = _snapshot()
    provider, model = _find(snapshot, name)
    price = model.prices if not isinstance(model.prices, list) else _at(model.prices, when)
    bands = _bands(price)
    if bands is None:
        raise ConfigError(
            f"genai-prices has no price per token for {name} ({provider.id}/{model.id}): compare "
            "with another model, or give a list of your own with --prices"
        )
    per_thousand = price.__dict__.get("requests_kcount")
    return ListPrice(
        name=name,
        model=f"{provider.id}/{model.id}",
        source=package_source(when),
        bands=bands,
        per_request=per_thousand / 1000 if isinstance(per_thousand, Decimal) else Decimal(0),
    )


@cache
def package_source(when: datetime) -> str:
    """Which data of genai-prices are used, and how new they are.

    The package does not say when its data were gathered; the newest price that it dates, and that
    holds already, is the nearest to it that the data tell.
    """
    from importlib.metadata import version

    from genai_prices.types import StartDateConstraint

    dates = [
        conditional.constraint.start_date
        for provider in _snapshot().providers
        for model in provider.models
        if isinstance(model.prices, list)
        for conditional in model.prices
        if isinstance(conditional.constraint, StartDateConstraint)
    ]
    newest = max((date for date in dates if date <= when.date()), default=None)
    return f"genai-prices {version('genai-prices')}, newest dated price {newest}"


@cache
def _snapshot() -> DataSnapshot:
    """What is bundled with the package, whatever a program around us has had fetched."""
    from genai_prices.data import providers
    from genai_prices.data_snapshot import DataSnapshot

    return DataSnapshot(providers=providers, from_auto_update=False)


def _find(snapshot: DataSnapshot, name: str) -> tuple[Provider, ModelInfo]:
    """The provider and model of this name, as `package_price` takes it.

    Raises:
        ConfigError: there is none.
    """
    provider_id, slash, rest = name.partition("/")
    tries: list[tuple[str, str | None]] = [(name, None)]
    if slash:
        tries.insert(0, (rest, provider_id))
    for model_ref, provider in tries:
        try:
            return snapshot.find_provider_model(model_ref, None, provider, None)
        except LookupError:
            continue
    known = {model.id for provider in snapshot.providers for model in provider.models}
    close = difflib.get_close_matches(name.lower(), sorted(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "see `genai-prices list`"
    raise ConfigError(f"genai-prices knows no model {name!r}; {hint} Own prices: --prices FILE")


def _at(prices: Sequence[ConditionalPrice], when: datetime) -> ModelPrice:
    """The last price that holds on that day at all hours; failing that the first, as there."""
    from genai_prices.types import StartDateConstraint

    for conditional in reversed(prices):
        constraint = conditional.constraint
        if constraint is None or (
            isinstance(constraint, StartDateConstraint) and constraint.active(when)
        ):
            return conditional.prices
    return prices[0].prices


def _bands(price: ModelPrice) -> tuple[PriceBand, ...] | None:
    """The bands of a package's price; None: it has none per token of text."""
    keys = ("input_mtok", "cache_read_mtok", "output_mtok")
    fresh, cached, output = (price.__dict__.get(key) for key in keys)
    if fresh is None and output is None:
        return None
    starts = {0} | {
        tier.start for value in (fresh, cached, output) for tier in getattr(value, "tiers", ())
    }
    return tuple(
        PriceBand(
            above=start,
            input=_above(fresh, start) or Decimal(0),
            cached_input=_above(cached, start),
            output=_above(output, start) or Decimal(0),
        )
        for start in sorted(starts)
    )


def _above(value: Decimal | TieredPrices | None, start: int) -> Decimal | None:
    """The price that holds just above `start` input tokens."""
    if value is None or isinstance(value, Decimal):
        return value
    steps = [tier.price for tier in value.tiers if start and tier.start <= start]
    return steps[-1] if steps else value.base
