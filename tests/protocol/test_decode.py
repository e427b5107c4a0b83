from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.protocol.chat import ChatCompletionRequest
from octavo.protocol.completions import CompletionRequest
from octavo.protocol.decode import decode
from octavo.protocol.tokenize import TokenizeRequest

KINDS = (ChatCompletionRequest, CompletionRequest, TokenizeRequest)


def refused(body: bytes, kind: type[msgspec.Struct] = ChatCompletionRequest) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        decode(body, kind)
    return caught.value


def chat(**fields: Any) -> bytes:
    user = {"role": "user", "content": "hi"}
    return json.dumps({"model": "m", "messages": [user], **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"foo": 1}, "foo", "Unknown field: foo"),
        ({"Temperature": 1}, "Temperature", "(did you mean temperature?)"),
        ({"a.b[0]": 1}, "a.b[0]", "Unknown field: a.b[0]"),
        ({"x" * 10_000: 1}, "x" * 200, "Unknown field: xxx"),
        ({"model": 1}, "model", "model: expected str, got int"),
        ({"seed": "1"}, "seed", "seed: expected int or null, got str"),
        ({"top_k": 2**31}, "top_k", "top_k: expected int <= 2147483647"),
        ({"service_tier": "flex"}, "service_tier", "'flex', it must be one of 'auto', 'default'"),
        ({"messages": [{"role": "x", "content": ""}]}, "messages[0].role", "'user', 'assistant'"),
        ({"messages": [{"content": ""}]}, "messages[0].role", "Missing required field"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "messages[0].content[0].type",
            "it must be one of 'text'",
        ),
        ({"stream_options": {"usage": 1}}, "stream_options.usage", "Unknown field"),
        ({"logit_bias": {"5": "x"}}, "logit_bias[...]", "expected float"),
    ],
)
def test_shape_errors_name_the_field(fields: dict[str, Any], param: str, message: str) -> None:
    error = refused(chat(**fields))
    assert error.param == param
    assert message in error.message
    assert len(error.message) < 600


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "ends too early (byte 0)"),
        (b'{"model": ', "ends too early (byte 10)"),
        (chat() + b" x", "trailing characters (byte"),
        (b"\xff", "(byte 0)"),
        (b'{"model": "\xff"}', "not UTF-8"),
    ],
)
def test_malformed_json_has_a_position(body: bytes, message: str) -> None:
    error = refused(body)
    assert error.message.startswith("The request body is not valid JSON: ")
    assert message in error.message
    assert error.param is None


def test_decodes() -> None:
    request = decode(chat(temperature=1, stop=["a"]), ChatCompletionRequest)
    assert (request.temperature, request.stop, request.n) == (1.0, ["a"], None)


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(body: bytes) -> None:
    for kind in KINDS:
        refused(body, kind)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = sorted({f.encode_name for kind in KINDS for f in msgspec.structs.fields(kind)})


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5), st.sampled_from(KINDS))
def test_any_json_is_decoded_or_refused_by_name(
    fields: dict[str, Any], kind: type[msgspec.Struct]
) -> None:
    """What Python's own JSON module reads or writes is never an unforeseen exception here."""
    body = json.dumps({"model": "m", "messages": [], "prompt": "", **fields}).encode()
    error = None
    try:
        decode(body, kind)
    except InvalidRequestError as exc:
        error = exc
    if error is not None:
        name = (error.param or "").split(".")[0].split("[")[0]
        assert name in NAMES or "not valid JSON" in error.message
        assert "\n" not in error.message
