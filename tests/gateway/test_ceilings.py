"""Bounds of answers in bodies, and what can be paid for, whatever the prices."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.gateway.ceilings import affordable_output, bounded, used, worst_at
from octavo.gateway.model import (
    Attempt,
    Call,
    DevicePrice,
    KeyInfo,
    Price,
    Route,
    TokenPrice,
    Tokens,
    worst_case,
)

COUNTS = st.integers(0, 10**6)
PRICES = st.one_of(
    st.builds(
        TokenPrice,
        input=st.integers(0, 10**12),
        output=st.integers(0, 10**12),
        request=st.integers(0, 10**9),
        per=st.sampled_from([1, 1000, 10**6]),
    ),
    st.builds(
        DevicePrice,
        hourly_nano=st.integers(0, 10**12),
        worst_input_ns=st.integers(1, 10**9),
        worst_output_ns=st.integers(1, 10**9),
    ),
)


def call(
    route: Route = "chat", num_prompt: int = 10, key: KeyInfo | None = None, **body: int
) -> Call:
    given_ = [value for name, value in body.items() if name.startswith("max_")]
    return Call(
        request_id="r",
        arrived=0.0,
        route=route,
        path="/",
        model="m",
        body={"model": "m", **body},
        num_prompt_tokens=num_prompt,
        max_tokens=given_[0] if given_ else (0 if route == "embeddings" else None),
        key=key or KeyInfo(key_id="k"),
    )


@given(price=PRICES, num_prompt=COUNTS, left=st.integers(0, 10**13))
def test_what_is_affordable_is_paid_for_and_one_more_is_not(
    price: Price, num_prompt: int, left: int
) -> None:
    one = call(num_prompt=num_prompt)
    fits = affordable_output(one, price, left)
    if fits >= 1 << 62:
        assert worst_case(one, price, max_tokens=10**6).cost_nano <= max(
            left, worst_case(one, price, max_tokens=0).cost_nano
        )
        return
    # Costs are rounded up: a nano-unit either way.
    if fits:
        assert worst_case(one, price, max_tokens=fits).cost_nano <= left + 1
    assert worst_case(one, price, max_tokens=fits + 2).cost_nano >= left - 1


@pytest.mark.parametrize(
    ("route", "name"),
    [
        ("chat", "max_completion_tokens"),
        ("completions", "max_tokens"),
        ("messages", "max_tokens"),
        ("responses", "max_output_tokens"),
    ],
)
def test_a_bound_is_written_as_the_route_spells_it(route: Route, name: str) -> None:
    key = KeyInfo(key_id="k", max_tokens=7)
    changed, body = bounded(call(route, key=key), b'{"model":"m","n":[1, 2.50]}', None)
    assert changed.max_tokens == changed.body[name] == 7
    assert json.loads(body) == {"model": "m", "n": [1, 2.5], name: 7}
    assert b"[1, 2.50]" in body  # what is not ours stays as it was


def test_both_names_are_lowered_where_both_are_written() -> None:
    key = KeyInfo(key_id="k", max_tokens=7)
    one = call(key=key, max_tokens=9, max_completion_tokens=9)
    _, body = bounded(one, json.dumps(one.body).encode(), None)
    assert json.loads(body) == {"model": "m", "max_tokens": 7, "max_completion_tokens": 7}


def test_what_is_within_its_bounds_stays_the_same_bytes() -> None:
    one = call(key=KeyInfo(key_id="k", max_tokens=9), max_tokens=9)
    body = b'{"model": "m", "max_tokens": 9}'
    assert bounded(one, body, 5) == (one, body)
    embedded = call("embeddings", key=KeyInfo(key_id="k", requires_max_tokens=True))
    assert bounded(embedded, b"{}", 5) == (embedded, b"{}")


def test_a_bound_that_is_demanded_is_named() -> None:
    key = KeyInfo(key_id="k", requires_max_tokens=True, default_max_tokens=9)
    with pytest.raises(InvalidRequestError) as caught:
        bounded(call("responses", key=key), b"{}", 5)
    assert caught.value.param == "max_output_tokens"


def test_what_nobody_knows_is_no_amount() -> None:
    price = TokenPrice(input=1, output=2)
    assert worst_at(call(), None, 100) is None
    assert worst_at(call(), price, None) is None
    known = worst_at(call(), price, 100)
    assert known is not None
    assert known.cost_nano == 10 + 200
    assert worst_at(call(max_tokens=4), price, 100).cost_nano == 10 + 8  # type: ignore[union-attr]


def test_used_adds_up_what_attempts_tell() -> None:
    def attempt(number: int, tokens: Tokens, cost: int, backend: str) -> Attempt:
        return Attempt(
            request_id="r", number=number, upstream_id="r", time_ns=0, tier="t", backend=backend,
            model="m", status="ok", tokens=tokens, cost_nano=cost,
        )  # fmt: skip

    prices: dict[str, Price] = {
        "cloud": TokenPrice(input=1, output=2),
        "own": DevicePrice(hourly_nano=3600 * 10**9, worst_input_ns=2, worst_output_ns=5),
    }
    total = used(
        [
            attempt(0, Tokens(), 0, "own"),  # was never answered
            attempt(1, Tokens(input=4, output=3, device_ns=100), 100, "own"),
            attempt(2, Tokens(input=4, output=3), 23, "own"),  # does not tell its time
            attempt(3, Tokens(input=4, output=3), 10, "cloud"),
        ],
        lambda backend, model: prices[backend],
    )
    assert total.cost_nano == 133
    assert total.num_tokens == 21
    assert total.device_ns == 100 + (4 * 2 + 3 * 5)
