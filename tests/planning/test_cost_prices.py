"""List prices against genai-prices' own calculation, for many models of all providers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import genai_prices
import pytest
from genai_prices import data_snapshot
from genai_prices.data import providers
from genai_prices.types import StartDateConstraint, TimeOfDateConstraint
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.planning.cost_prices import (
    ListPrice,
    PriceBand,
    TokenCounts,
    choose_prices,
    package_price,
    package_source,
    thresholds_of,
)

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def has_hours(model: object) -> bool:
    prices = getattr(model, "prices", None)
    return isinstance(prices, list) and any(
        isinstance(price.constraint, TimeOfDateConstraint) for price in prices
    )


def priced_names() -> list[tuple[str, str]]:
    """Provider and model of some models, those with tiers among them, that have a price per token
    at all hours.
    """
    names = []
    for index, (provider, model) in enumerate((p, m) for p in providers for m in p.models):
        prices = model.prices if isinstance(model.prices, list) else [model]
        values = [v for price in prices for v in vars(getattr(price, "prices", price)).values()]
        has_tiers = any(hasattr(value, "tiers") for value in values)
        if has_hours(model) or index % (3 if has_tiers else 25):
            continue
        if provider.find_model(model.id) is model:
            names.append((provider.id, model.id))
    return [name for name in names if is_priced(name)]


def is_priced(name: tuple[str, str]) -> bool:
    try:
        package_price("/".join(name), NOW)
    except ConfigError:
        return False
    return True


NAMES = priced_names()
COUNTS = st.tuples(
    st.one_of(st.integers(0, 1000), st.integers(0, 2_000_000)),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)


def test_there_are_many() -> None:
    assert len(NAMES) > 80
    assert sum(len(package_price(f"{p}/{m}", NOW).bands) > 1 for p, m in NAMES) > 20


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(NAMES), counts=COUNTS)
def test_a_request_costs_what_the_package_says(
    name: tuple[str, str], counts: tuple[int, int, int]
) -> None:
    provider, model = name
    num_input, num_cached, num_output = counts
    num_cached = min(num_cached, num_input)
    price = package_price(f"{provider}/{model}", NOW)
    cost = price.cost(TokenCounts(1, num_input, num_cached, num_output), price.band_of(num_input))
    reference = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=num_input, cache_read_tokens=num_cached, output_tokens=num_output
        ),
        model,
        provider_id=provider,
        genai_request_timestamp=NOW,
    )
    assert cost == reference.total_price


@pytest.mark.parametrize("num_input", [1, 200_000, 200_001])
def test_long_requests_cost_more(num_input: int) -> None:
    price = package_price("claude-sonnet-4-5", NOW)
    assert price.band_of(num_input) == price.bands[num_input > 200_000]
    assert price.bands[1].input > price.bands[0].input
    assert thresholds_of([price]) == (200_000,)


def test_cached_tokens_cost_the_cached_price_or_the_full_one() -> None:
    band = PriceBand(input=Decimal(4), cached_input=Decimal("0.4"), output=Decimal(10))
    price = ListPrice(name="a", model="a", source="", bands=(band,))
    assert price.cost(TokenCounts(1, 1_000_000, 500_000, 100_000), band) == Decimal("3.2")
    band = PriceBand(input=Decimal(4), output=Decimal(10))
    assert price.cost(TokenCounts(1, 1_000_000, 500_000, 100_000), band) == Decimal(5)


def test_what_a_program_had_fetched_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = data_snapshot.DataSnapshot(providers=[], from_auto_update=True)
    monkeypatch.setattr(data_snapshot, "_custom_snapshot", empty)
    assert package_price("gpt-5-mini", NOW).model == "openai/gpt-5-mini"


def test_prices_are_those_of_the_day() -> None:
    """DeepSeek and others changed prices on a date: before it the older one holds."""
    changed = 0
    for provider in providers:
        for model in provider.models:
            if not isinstance(model.prices, list) or has_hours(model):
                continue
            constraint = model.prices[-1].constraint
            if not isinstance(constraint, StartDateConstraint):
                continue
            if provider.find_model(model.id) is not model or changed == 10:
                continue
            at = datetime.combine(constraint.start_date, datetime.min.time(), UTC)
            name = f"{provider.id}/{model.id}"
            after, before = (package_price(name, at - timedelta(seconds=s)) for s in (0, 1))
            changed += after.bands != before.bands
    assert changed == 10


def test_the_source_tells_version_and_date() -> None:
    assert package_source(NOW).startswith(f"genai-prices {genai_prices.__version__}, ")
    date = package_source(NOW).rpartition(" ")[2]
    assert "2026-06-01" < date <= "2026-11-28"


def test_own_prices_go_first() -> None:
    band = PriceBand(input=Decimal(1), output=Decimal(1))
    own = {"gpt-5-mini": ListPrice(name="gpt-5-mini", model="mine", source="f", bands=(band,))}
    assert [p.model for p in choose_prices(["gpt-5-mini", "gpt-5"], own)] == [
        "mine",
        "openai/gpt-5",
    ]
    assert choose_prices([], own) == list(own.values())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt-5-mni", "did you mean gpt-5-mini"),
        ("nonsense-of-mine-xyz", "--prices FILE"),
        ("openai/nonsense", "knows no model"),
        ("nobody/gpt-5", "knows no model"),
        ("groq/whisper-large-v3", "no price per token"),
    ],
)
def test_names_that_nobody_lists(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("/", "/")):
        choose_prices([name], {})
