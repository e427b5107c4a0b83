"""The headers of trace context and baggage: W3C's published cases, and OpenTelemetry's reader."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace import TraceState, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from octavo.observability.trace_context import (
    MAX_BAGGAGE_BYTES,
    TraceContext,
    TraceParent,
    baggage_of,
    format_tracestate,
    parse_baggage,
    parse_traceparent,
    parse_tracestate,
    trace_context_of,
    trace_id_of,
)

TRACE = "12345678901234567890123456789012"
SPAN = "1234567890123456"
GOOD = f"00-{TRACE}-{SPAN}-01"

# The inputs and verdicts of https://github.com/w3c/trace-context, test/test_data.json and test.py.
VALID_PARENTS = [
    GOOD,
    f" {GOOD}",
    f"\t{GOOD}",
    f"{GOOD} ",
    f"{GOOD}\t",
    f"\t {GOOD} \t",
    f"cc-{TRACE}-{SPAN}-01",
    f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like",
]
INVALID_PARENTS = [
    f"{GOOD}.",
    f"{GOOD}-what-the-future-will-be-like",
    f"cc-{TRACE}-{SPAN}-01.what-the-future-will-be-like",
    f"ff-{TRACE}-{SPAN}-01",
    f".0-{TRACE}-{SPAN}-01",
    f"0.-{TRACE}-{SPAN}-01",
    f"000-{TRACE}-{SPAN}-01",
    f"0000-{TRACE}-{SPAN}-01",
    f"0-{TRACE}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-.{TRACE[1:]}-{SPAN}-01",
    f"00-{TRACE[:-1]}.-{SPAN}-01",
    f"00-{TRACE}3-{SPAN}-01",
    f"00-{TRACE[:-1]}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE}-.{SPAN[1:]}-01",
    f"00-{TRACE}-{SPAN[:-1]}.-01",
    f"00-{TRACE}-{SPAN}7-01",
    f"00-{TRACE}-{SPAN[:-1]}-01",
    f"00-{TRACE}-{SPAN}-.0",
    f"00-{TRACE}-{SPAN}-0.",
    f"00-{TRACE}-{SPAN}-001",
    f"00-{TRACE}-{SPAN}-1",
    "",
]
PLAIN_KEY = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
ANY_VALUE = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) not in ",=")
BARS = [f"bar{i:02}={i:02}" for i in range(1, 34)]
STATES: list[tuple[list[str], dict[str, str]]] = [
    (["foo=1,bar=2"], {"foo": "1", "bar": "2"}),
    ([""], {}),
    (["foo=1", ""], {"foo": "1"}),
    (["", "foo=1"], {"foo": "1"}),
    (
        ["foo=1,bar=2", "rojo=1,congo=2", "baz=3"],
        {"foo": "1", "bar": "2", "rojo": "1", "congo": "2", "baz": "3"},
    ),
    (["foo=1,foo=1"], {}),
    (["foo=1,foo=2"], {}),
    (["foo=1", "foo=1"], {}),
    (["foo=1", "foo=2"], {}),
    ([f"{PLAIN_KEY}={ANY_VALUE}"], {PLAIN_KEY: ANY_VALUE}),
    ([f"{PLAIN_KEY}@a-z0-9_-*/={ANY_VALUE}"], {f"{PLAIN_KEY}@a-z0-9_-*/": ANY_VALUE}),
    (["foo=1 \t , \t bar=2, \t baz=3"], {"foo": "1", "bar": "2", "baz": "3"}),
    (["foo=1\t \t,\t \tbar=2,\t \tbaz=3"], {"foo": "1", "bar": "2", "baz": "3"}),
    ([" foo=1"], {"foo": "1"}),
    (["\tfoo=1"], {"foo": "1"}),
    (["foo=1 "], {"foo": "1"}),
    (["foo=1\t"], {"foo": "1"}),
    (["\t foo=1 \t"], {"foo": "1"}),
    (["foo =1"], {}),
    (["FOO=1"], {}),
    (["foo.bar=1"], {}),
    (["foo@=1,bar=2"], {}),
    (["@foo=1,bar=2"], {}),
    (["foo@@bar=1,bar=2"], {}),
    (["foo@bar@baz=1,bar=2"], {}),
    ([",".join(BARS[:32])], {bar[:5]: bar[6:] for bar in BARS[:32]}),
    ([",".join(BARS)], {}),
    (["foo=1", "z" * 256 + "=1"], {"foo": "1", "z" * 256: "1"}),
    (["foo=1", "z" * 257 + "=1"], {}),
    (["foo=1", "t" * 241 + "@" + "v" * 14 + "=1"], {"foo": "1", "t" * 241 + "@" + "v" * 14: "1"}),
    (["foo=1", "t" * 242 + "@v=1"], {}),
    (["foo=1", "t@" + "v" * 15 + "=1"], {}),
    (["foo=" + "x" * 256], {"foo": "x" * 256}),
    (["foo=" + "x" * 257], {}),
]

# Of https://github.com/w3c/baggage: the specification's examples, and test/test_baggage.py.
NASTY = "\t \"';=asdf!@#$%^&*()"
BAGGAGE: list[tuple[list[str], dict[str, str]]] = [
    (["SomeKey=SomeValue"], {"SomeKey": "SomeValue"}),
    (["SomeKey=SomeValue,SomeKey2=SomeValue2"], {"SomeKey": "SomeValue", "SomeKey2": "SomeValue2"}),
    (
        ["SomeKey \t = \t SomeValue \t , \t SomeKey2 \t = \t SomeValue2 \t "],
        {"SomeKey": "SomeValue", "SomeKey2": "SomeValue2"},
    ),
    (
        ["SomeKey \t = \t SomeValue \t ; \t P=V \t , \t SomeKey2=SomeValue2 \t ; \t Prop2"],
        {"SomeKey": "SomeValue", "SomeKey2": "SomeValue2"},
    ),
    (["SomeKey=SomeValue=equals"], {"SomeKey": "SomeValue=equals"}),
    ([f"SomeKey={quote(NASTY)}"], {"SomeKey": NASTY}),
    ([f"SomeKey \t = \t {quote(NASTY)} \t "], {"SomeKey": NASTY}),
    (
        ["key1=value1;property1;property2, key2 = value2, key3=value3; propertyKey=propertyValue"],
        {"key1": "value1", "key2": "value2", "key3": "value3"},
    ),
    (
        ["userId =   alice", "serverNode = DF%2028, isProduction = false"],
        {"userId": "alice", "serverNode": "DF 28", "isProduction": "false"},
    ),
    (["a=1,b b=2,,c,=3,d=4"], {"a": "1", "d": "4"}),
    (["a=,b=%E4%BD%A0%ff%+"], {"a": "", "b": "你�%+"}),
    (["a=1,a=2"], {"a": "2"}),
    ([""], {}),
]

ids = st.text("0123456789abcdef", min_size=16, max_size=16).filter(lambda text: text.strip("0"))
keys = st.from_regex(r"[a-z][a-z0-9_\-*/]{0,20}(@[a-z][a-z0-9]{0,5})?", fullmatch=True)
values = st.from_regex(r"[\x21-\x2b\x2d-\x3c\x3e-\x7e]{1,40}", fullmatch=True)


def headers_of(*pairs: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in pairs]


@pytest.mark.parametrize("value", VALID_PARENTS)
def test_valid_parents_are_read(value: str) -> None:
    parent = parse_traceparent(value)
    assert parent == TraceParent(TRACE, SPAN, 1)
    assert str(parent) == GOOD


@pytest.mark.parametrize("value", INVALID_PARENTS)
def test_invalid_parents_are_none(value: str) -> None:
    assert parse_traceparent(value) is None
    assert trace_context_of(headers_of(("traceparent", value), ("tracestate", "foo=1"))) is None
    assert trace_id_of(headers_of(("traceparent", value))) == ""


@pytest.mark.parametrize("name", ["traceparent", "TraceParent", "TrAcEpArEnT", "TRACEPARENT"])
def test_names_come_in_any_case(name: str) -> None:
    assert trace_id_of(headers_of((name, GOOD))) == TRACE


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("trace-parent", GOOD)],
        [("trace.parent", GOOD)],
        [("tracestate", "foo=1")],
        [("traceparent", GOOD), ("traceparent", GOOD.replace("9012-", "9011-"))],
        [("traceparent", GOOD), ("TraceParent", GOOD)],
    ],
)
def test_without_one_parent_there_is_no_context(pairs: list[tuple[str, str]]) -> None:
    assert trace_context_of(headers_of(*pairs)) is None


@pytest.mark.parametrize(("given_values", "expected"), STATES)
def test_states(given_values: list[str], expected: dict[str, str]) -> None:
    assert parse_tracestate(given_values) == tuple(expected.items())
    states = [("TraceState", value) for value in given_values]
    context = trace_context_of(headers_of(*states, ("traceparent", GOOD)))
    assert context == TraceContext(TraceParent(TRACE, SPAN, 1), tuple(expected.items()))


def test_flags_are_bits() -> None:
    assert [
        (parent.is_sampled, str(parent)[-2:])
        for flags in ("00", "01", "09", "0a", "ff")
        if (parent := parse_traceparent(f"{GOOD[:-2]}{flags}")) is not None
    ] == [(False, "00"), (True, "01"), (True, "01"), (False, "02"), (True, "03")]


@settings(max_examples=40)
@given(ids, ids, ids, st.integers(0, 3), st.dictionaries(keys, values, max_size=8))
def test_what_is_written_is_read_by_others(
    high: str, low: str, span: str, flags: int, state: dict[str, str]
) -> None:
    context = TraceContext(TraceParent(high + low, span, flags), tuple(state.items()))
    assert trace_context_of(context.headers()) == context
    carrier = {name.decode(): value.decode() for name, value in context.headers()}
    theirs = get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()
    assert (f"{theirs.trace_id:032x}", f"{theirs.span_id:016x}") == (high + low, span)
    assert theirs.trace_flags == flags
    assert list(theirs.trace_state.items()) == list(state.items())
    assert theirs.is_remote


@settings(max_examples=40)
@given(st.dictionaries(keys, values, max_size=12), st.integers(0, 300))
def test_a_long_state_loses_whole_members(state: dict[str, str], max_len: int) -> None:
    members = tuple(state.items())[:32]
    text = format_tracestate(members, max_len)
    assert len(text) <= max_len
    kept = parse_tracestate([text])
    assert list(kept) == [member for member in members if member in kept]
    assert [f"{k}={v}" for k, v in kept] == (text.split(",") if text else [])
    if kept != members and kept:
        first_lost = next(member for member in members if member not in kept)
        longer = format_tracestate((*kept, first_lost), 10_000)
        assert len(longer) > max_len


def test_long_members_go_first() -> None:
    long = ("long", "x" * 200)
    state = (("a", "1"), long, ("b", "y" * 100), ("c", "z" * 100), ("d", "z" * 100))
    assert [m.split("=")[0] for m in format_tracestate(state, 320).split(",")] == list("abcd")
    assert format_tracestate(state, 700).split(",")[1] == "long=" + "x" * 200
    assert format_tracestate(state, 5) == "a=1"


@given(st.text())
def test_any_text_is_no_error(text: str) -> None:
    parse_traceparent(text)
    parse_tracestate([text])
    parse_baggage([text])


@given(
    st.lists(st.tuples(st.sampled_from([b"traceparent", b"tracestate", b"baggage"]), st.binary()))
)
def test_any_bytes_are_no_error(headers: list[tuple[bytes, bytes]]) -> None:
    context = trace_context_of(headers)
    assert context is None or TraceState(list(context.state)) is not None
    assert len(baggage_of(headers)) <= 64


@pytest.mark.parametrize(("given_values", "expected"), BAGGAGE)
def test_baggage(given_values: list[str], expected: dict[str, str]) -> None:
    assert parse_baggage(given_values) == expected
    pairs = [("Baggage", value) for value in given_values]
    assert baggage_of(headers_of(*pairs)) == expected


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9!#$&'*\-.^_`|~]{1,10}", fullmatch=True), st.text(max_size=20)
    )
)
def test_baggage_is_read_as_others_write_it(entries: dict[str, str]) -> None:
    from opentelemetry import baggage
    from opentelemetry.context import Context

    try:
        for value in entries.values():
            value.encode()
    except UnicodeEncodeError:
        return
    written = ",".join(f"{key}={quote(value)}" for key, value in entries.items())
    mine = parse_baggage([written])
    assert mine == dict(list(entries.items())[:64])
    theirs = W3CBaggagePropagator().extract({"baggage": written}, Context())
    for key, value in baggage.get_all(theirs).items():
        assert mine[key].strip() == str(value)


def test_baggage_has_limits() -> None:
    many = [f"key{i}=value" for i in range(200)]
    assert list(parse_baggage([",".join(many)])) == [f"key{i}" for i in range(64)]
    wide = [f"key{i}={'x' * 1000}" for i in range(10)]
    found = parse_baggage(wide)
    assert list(found) == [f"key{i}" for i in range(8)]
    fitting = "k=" + "x" * (MAX_BAGGAGE_BYTES - 2)
    assert parse_baggage([fitting]) != {}
    assert parse_baggage([fitting + "x"]) == {}
