"""What of a call is sent on, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.gateway.config_backends import Backend, Kind, ModelInfo
from octavo.gateway.model import PATHS, Call, KeyInfo
from octavo.gateway.outgoing import Outgoing, outgoing, upstream_id_of
from octavo.gateway.secret import Secret
from octavo.gateway.upstream import Upstream
from octavo.server.tags import read_tags

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def make(body: bytes, *, kind: Kind = "openai", path: str = "/v1/chat/completions", **more: Any):  # type: ignore[no-untyped-def]
    """The request that a call becomes."""
    section = Backend(url="http://a/base/v1", kind=kind, models={"m": ModelInfo()})
    asked = Call(
        request_id="r1", arrived=0.0, route=PATHS[path], path=path, model="x", body={}, **more
    )
    return outgoing(asked, Upstream("a", section), "org/m", body, "r1.2")


def headers_of(made: Outgoing) -> list[tuple[bytes, bytes]]:
    """As ASGI would have them."""
    lines = made.head.decode("latin-1").split("\r\n")[1:-2]
    pairs = (line.split(": ", 1) for line in lines)
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs]


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=8), JSON, max_size=6))
def test_other_fields_stay_as_they_are(body: dict[str, Any]) -> None:
    for name in ("model", "cache_salt", "stream_options"):
        body.pop(name, None)
    made = make(json.dumps({"model": "x", **body}).encode())
    assert json.loads(made.body) == {"model": "org/m", **body}
    assert dict(headers_of(made))[b"content-length"] == str(len(made.body)).encode()
    assert not made.drops_usage


def test_numbers_are_not_rounded() -> None:
    made = make(b'{"model":"x","seed":12345678901234567890123,"t":0.10000000000000000001}')
    assert b'"seed":12345678901234567890123' in made.body
    assert b"0.10000000000000000001" in made.body


def test_a_name_that_is_there_twice_counts_once() -> None:
    made = make(b'{"model":"a","model":"b"}')
    assert made.body == b'{"model":"org/m"}'


@pytest.mark.parametrize(
    ("options", "drops"),
    [
        (None, True),
        ({}, True),
        ({"include_usage": False}, True),
        ({"include_usage": True}, False),
        ({"include_usage": True, "other": 1}, False),
        ({"continuous_usage_stats": True}, True),
    ],
)
def test_usage_is_always_asked_for(options: Any, drops: bool) -> None:
    body = {"model": "x", "stream": True, "stream_options": options}
    made = make(json.dumps(body).encode(), stream=True)
    sent = json.loads(made.body)["stream_options"]
    assert sent == (options or {}) | {"include_usage": True}
    assert made.drops_usage == drops


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_routes_whose_streams_tell_usage_anyway(path: str) -> None:
    made = make(b'{"stream":true}', path=path, stream=True)
    assert b"stream_options" not in made.body
    assert made.head.startswith(b"POST /base%b HTTP/1.1\r\n" % path.encode())


@given(
    st.dictionaries(st.text(max_size=12), st.text(max_size=20), max_size=4),
    st.text(max_size=20),
    st.text(max_size=20),
)
def test_headers_hold_no_line_of_the_callers(
    tags: dict[str, str], feature: str, traceparent: str
) -> None:
    made = make(b"{}", kind="octavo", tags=tags, feature=feature, traceparent=traceparent)
    lines = made.head.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert b"\n" not in b"".join(lines)
    assert b"\r" not in b"".join(lines)
    known = (b"host", b"user-agent", b"accept", b"content-", b"x-", b"traceparent")
    assert all(name.startswith(known) for name, _ in headers_of(made))


def test_an_engine_reads_the_tags_that_we_send() -> None:
    tags = {"team": "blau", "wörter": "kein Name", "ort": "Zürich 🙂"}
    made = make(
        b"{}",
        kind="octavo",
        tags=tags,
        feature="chat",
        tenant="acme",
        session_id="s",
        key=KeyInfo(key_id="k"),
    )
    read = read_tags(headers_of(made))
    assert (read.feature, read.tenant, read.session_id) == ("chat", "acme", "s")
    assert read.tags == {"team": "blau", "ort": "Zürich 🙂"}
    assert read.includes_cost


@pytest.mark.parametrize("path", PATHS)
def test_salts_go_to_engines_and_routes_that_take_them(path: str) -> None:
    body = b'{"cache_salt":"mine"}'
    taking: dict[Kind, tuple[str, ...]] = {
        "octavo": ("chat", "completions", "responses", "messages"),
        "vllm": ("chat", "completions", "responses"),
        "openai": (),
    }
    for kind, routes in taking.items():
        sent = json.loads(make(body, kind=kind, path=path, tenant="acme").body)
        assert ("cache_salt" in sent) == (PATHS[path] in routes)
        assert sent.get("cache_salt") != "mine"


def test_salts_depend_on_tenant_key_and_secret() -> None:
    def salt(tenant: str, key: str, secret: str | None, mine: str | None = None) -> Any:
        section = Backend(
            url="http://a",
            kind="octavo",
            models={"m": ModelInfo()},
            api_key=None if secret is None else Secret(secret),
        )
        asked = Call(
            request_id="r",
            arrived=0.0,
            route="chat",
            path="/v1/chat/completions",
            model="x",
            body={},
            tenant=tenant,
            key=KeyInfo(key_id=key),
        )
        body = {} if mine is None else {"cache_salt": mine}
        made = outgoing(asked, Upstream("a", section), "m", json.dumps(body).encode(), "r")
        return json.loads(made.body).get("cache_salt")

    salts = [
        salt("a", "k1", "s"),
        salt("b", "k1", "s"),
        salt("", "k1", "s"),
        salt("a", "k1", "t"),
        salt("a", "k1", "s", "x"),
        salt("", "", None, "x"),
    ]
    assert len(set(salts)) == len(salts)
    assert salt("a", "k2", "s") == salts[0]  # a tenant's keys share
    assert salt("", "", None) is None  # nobody is known, and nobody asks


def test_metadata_that_is_the_gateways_to_say() -> None:
    body = b'{"metadata":{"tenant":"evil","session_id":"x","ticket":"7"}}'
    assert json.loads(make(body, kind="octavo").body)["metadata"] == {"ticket": "7"}
    assert json.loads(make(body).body)["metadata"]["tenant"] == "evil"  # nothing to us, or to them
    assert b"[1]" in make(b'{"metadata":[1]}', kind="octavo").body


@pytest.mark.parametrize("body", [b"", b"[]", b"3", b'{"a"', b"\xff"])
def test_what_is_no_object(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="JSON object"):
        make(body)


def test_ids() -> None:
    assert upstream_id_of("r", 0) == "r"
    assert upstream_id_of("r", 2) == "r.2"
    long = upstream_id_of("x" * 128, 3)
    assert len(long) <= 128
    assert long != upstream_id_of("x" * 127, 3)
    made = make(b"{}")
    assert dict(headers_of(made))[b"x-request-id"] == b"r1.2"
    assert "r1" not in repr(made)
