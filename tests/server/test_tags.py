from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.server.tags import (
    MAX_FIELD_LEN,
    MAX_NAME_LEN,
    MAX_TAGS,
    MAX_VALUE_LEN,
    NO_TAGS,
    OTHER,
    DistinctCap,
    RequestTags,
    read_tags,
)

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
NUM_EXAMPLES = int(os.environ.get("TAGS_EXAMPLES", "60"))


def headers(**values: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in values.items()]


def test_each_source_alone() -> None:
    assert read_tags([]) == NO_TAGS
    assert read_tags([(b"host", b"x"), (b"x-request-id", b"y")]) is NO_TAGS
    named = headers(x_octavo_feature=" search ", x_octavo_tenant="acme", x_octavo_session="run 7")
    assert read_tags(named) == RequestTags(feature="search", tenant="acme", session_id="run 7")
    assert read_tags(headers(x_octavo_tag_team="core")).tags == {"team": "core"}
    metadata = {"feature": "chat", "tenant": "b", "session_id": "s", "Team": "naïve 世界"}
    assert read_tags([], metadata=metadata) == RequestTags(
        feature="chat", tenant="b", session_id="s", tags={"Team": "naïve 世界"}
    )
    assert read_tags([], user="u-1").tags == {"user": "u-1"}
    baggage = "feature=mail,session.id=s%2F1;ttl=3,team=a%20b,sentry-release=1"
    assert read_tags(headers(baggage=baggage)) == RequestTags(
        feature="mail", session_id="s/1", tags={"team": "a b"}
    )
    trace = headers(traceparent=f"00-{TRACE_ID}-00f067aa0ba902b7-01")
    assert read_tags(trace) == RequestTags(trace_id=TRACE_ID)


def test_precedence() -> None:
    given_headers = headers(
        x_octavo_feature="header", x_octavo_tag_a="header", baggage="tenant=bag,a=bag,b=bag,d=bag"
    )
    metadata = {"feature": "meta", "tenant": "meta", "a": "meta", "b": "meta", "user": "meta"}
    found = read_tags(given_headers, metadata=metadata, user="body")
    assert (found.feature, found.tenant) == ("header", "meta")
    assert found.tags == {"a": "header", "b": "meta", "d": "bag", "user": "meta"}
    assert found.num_dropped == 0


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        (b"x-octavo-feature", b"a\x01b", "X-Octavo-Feature"),
        (b"x-octavo-feature", b"x" * (MAX_FIELD_LEN + 1), "X-Octavo-Feature"),
        (b"x-octavo-tenant", b"\xff", "X-Octavo-Tenant"),
        (b"x-octavo-session", b"a\tb", "X-Octavo-Session"),
        (b"x-octavo-tag-team", b"x" * (MAX_VALUE_LEN + 1), "X-Octavo-Tag-team"),
        (b"x-octavo-tag-", b"x", "X-Octavo-Tag-"),
        (b"x-octavo-tag-a!b", b"x", "X-Octavo-Tag-a!b"),
        (b"x-octavo-include-cost", b"yes please", "X-Octavo-Include-Cost"),
    ],
)
def test_a_header_of_ours_is_refused_by_name(name: bytes, value: bytes, param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read_tags([(name, value)])
    assert raised.value.param == param
    assert param in raised.value.message


def test_headers_that_contradict_each_other_or_are_too_many() -> None:
    twice = headers(x_octavo_feature="a") + headers(x_octavo_feature="b")
    with pytest.raises(InvalidRequestError, match="X-Octavo-Feature is there twice"):
        read_tags(twice)
    assert read_tags(headers(x_octavo_feature="a") * 2).feature == "a"
    many = [(f"x-octavo-tag-{n}".encode(), b"x") for n in range(MAX_TAGS)]
    assert len(read_tags(many).tags) == MAX_TAGS
    with pytest.raises(InvalidRequestError, match="at most 16 tags"):
        read_tags([*many, (b"x-octavo-tag-more", b"x")])


def test_what_was_sent_for_other_purposes_is_dropped_and_counted() -> None:
    metadata = {
        "": "x",
        "n" * (MAX_NAME_LEN + 1): "x",
        "long": "x" * (MAX_VALUE_LEN + 1),
        "number": 3,
        "nested": {"a": "b"},
        "line": "a\nb",
        "feature": "x" * (MAX_FIELD_LEN + 1),
        "empty": " ",
        "good": "x",
    }
    found = read_tags(headers(baggage="broken=%ff,fine=1"), metadata=metadata)
    assert found == RequestTags(tags={"good": "x", "fine": "1"}, num_dropped=8)
    many = {f"tag{n}": "x" for n in range(MAX_TAGS + 3)}
    found = read_tags(headers(baggage="one=more"), metadata=many)
    assert len(found.tags) == MAX_TAGS
    assert found.num_dropped == 4


@pytest.mark.parametrize(
    ("value", "is_true"), [(b"1", True), (b"True", True), (b"0", False), (b" false ", False)]
)
def test_cost_on_request(value: bytes, is_true: bool) -> None:
    assert read_tags([(b"x-octavo-include-cost", value)]).includes_cost is is_true


def test_first_values_of_an_hour_are_kept_apart() -> None:
    now = [7200.0]
    cap = DistinctCap(2, clock=lambda: now[0])
    assert [cap.admit(v) for v in ("a", "b", "c", "", "a", "d", OTHER)] == [
        *("a", "b", OTHER, "", "a", OTHER),
        OTHER,
    ]
    assert cap.num_capped == 3
    now[0] += 3600
    assert [cap.admit(v) for v in ("c", "d", "a")] == ["c", "d", OTHER]


NAMES = st.sampled_from(
    [
        b"baggage",
        b"traceparent",
        b"x-octavo-feature",
        b"x-octavo-tenant",
        b"x-octavo-session",
        b"x-octavo-tag-a",
        b"x-octavo-include-cost",
        b"x-octavo-unknown",
    ]
) | st.binary(max_size=80).map(lambda tail: b"x-octavo-tag-" + tail)
VALUES = st.binary(max_size=600) | st.text(max_size=600).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=700),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(
    st.lists(st.tuples(NAMES, VALUES), max_size=30),
    st.none() | st.dictionaries(st.text(max_size=80), JSON, max_size=30),
    st.none() | st.text(max_size=700),
)
def test_never_raises_anything_else_and_never_exceeds_its_bounds(
    given_headers: list[tuple[bytes, bytes]], metadata: dict[str, Any] | None, user: str | None
) -> None:
    try:
        found = read_tags(given_headers, metadata=metadata, user=user)
    except InvalidRequestError as exc:
        param = exc.param
    else:
        param = None
    if param is not None:
        shown = [name.decode("latin-1").lower() for name, _ in given_headers]
        assert any(name.startswith(param.lower()) for name in shown)
        return
    for field in (found.feature, found.tenant, found.session_id):
        assert len(field) <= MAX_FIELD_LEN
        assert field.isprintable()
    assert len(found.tags) <= MAX_TAGS
    for name, value in found.tags.items():
        assert 0 < len(name) <= MAX_NAME_LEN
        assert 0 < len(value) <= MAX_VALUE_LEN
        assert name.isprintable()
        assert value.isprintable()
        value.encode()  # a ledger's text is UTF-8


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(st.dictionaries(st.text(max_size=80), JSON, max_size=30), st.text(max_size=700))
def test_a_body_never_costs_the_caller_an_answer(metadata: dict[str, Any], user: str) -> None:
    found = read_tags([], metadata=metadata, user=user)
    num_kept = len(found.tags) + sum(map(bool, (found.feature, found.tenant, found.session_id)))
    assert num_kept + found.num_dropped <= len(metadata) + 1
