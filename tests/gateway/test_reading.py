"""Requests as routing sees them: every route's body, and nothing but clear errors from any JSON."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.gateway.config import parse
from octavo.gateway.config_routes import RoutingSection
from octavo.gateway.model import ANYBODY, PATHS, Call, KeyInfo, Route
from octavo.gateway.reading import ReadSettings, read_call, read_settings

NUM_EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "60"))
SETTINGS = ReadSettings(
    routing=RoutingSection(block_bytes=64, max_blocks=4), headers=frozenset({b"x-tier"})
)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ROUTES: dict[Route, str] = {route: path for path, route in PATHS.items()}


def read(
    route: Route,
    body: dict[str, Any] | bytes,
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
    key: KeyInfo = ANYBODY,
    settings: ReadSettings = SETTINGS,
) -> Call:
    data = body if isinstance(body, bytes) else json.dumps({"model": "m", **body}).encode()
    return read_call(
        data,
        headers or [],
        route=route,
        path=ROUTES[route],
        request_id="r",
        arrived=1.0,
        key=key,
        settings=settings,
    )


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_chat() -> None:
    call = read(
        "chat",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hello"}, IMAGE]},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
                {"role": "tool", "tool_call_id": "x", "content": "42"},
            ],
            "tools": [TOOL],
            "max_completion_tokens": 7,
            "n": 3,
            "stream": True,
            "response_format": {"type": "json_object"},
        },
        headers=[(b"x-tier", b"large"), (b"x-other", b"no"), (b"traceparent", TRACE.encode())],
    )
    assert (call.model, call.route, call.path) == ("m", "chat", "/v1/chat/completions")
    assert call.num_prompt_chars == len("Be brief.Hello42") + len('[{"id":"x"}]')
    assert (call.max_tokens, call.num_choices, call.stream) == (7, 3, True)
    assert (call.has_tools, call.has_schema, call.has_images) == (True, True, True)
    assert call.headers == {"x-tier": "large"}
    assert call.traceparent == TRACE
    assert call.body["messages"][0]["content"] == "Be brief."
    plain = read("chat", {"messages": [{"role": "user", "content": "Hello"}]})
    assert (plain.has_tools, plain.has_schema, plain.has_images) == (False, False, False)
    assert (plain.max_tokens, plain.num_choices, plain.stream) == (None, 1, False)
    assert not read("chat", {"messages": [], "tools": [TOOL], "tool_choice": "none"}).has_tools


def test_messages() -> None:
    call = read(
        "messages",
        {
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
                        {"type": "tool_result", "content": [{"type": "text", "text": "42"}]},
                        {"type": "document", "source": {"type": "text", "data": "long"}},
                    ],
                }
            ],
            "max_tokens": 9,
            "metadata": {"user_id": "alice"},
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
        },
    )
    assert call.num_prompt_chars == len("Be brief.42long")
    assert (call.max_tokens, call.has_images, call.has_schema) == (9, True, True)
    assert call.tags == {"user": "alice"}


def test_responses() -> None:
    call = read(
        "responses",
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
                {"type": "function_call_output", "call_id": "c", "output": "42"},
            ],
            "max_output_tokens": 5,
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}},
        },
    )
    assert call.num_prompt_chars > len("Be brief.Hello42")
    assert (call.max_tokens, call.has_schema) == (5, True)
    assert read("responses", {"input": "Hello"}).num_prompt_chars == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("prompt", {"id": "p"}),
        ("background", True),
        ("input", [{"type": "item_reference", "id": "x"}]),
    ],
)
def test_what_one_backend_keeps_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match="keeps no conversations") as caught:
        read("responses", {"input": "x", field: value})
    assert (caught.value.param or "").startswith(field)


def test_completions_and_embeddings() -> None:
    many = read("completions", {"prompt": ["Hello", "you"], "n": 2, "best_of": 3, "max_tokens": 4})
    assert (many.num_choices, many.max_tokens, many.num_prompt_chars) == (6, 4, 8)
    ids = read("completions", {"prompt": [1, 2, 3]})
    assert (ids.num_choices, ids.num_prompt_tokens, ids.num_prompt_chars) == (1, 3 + 2, 0)
    lists = read("embeddings", {"input": [[1, 2], [3, 4, 5]]})
    assert lists.num_prompt_tokens >= 5
    assert (lists.max_tokens, lists.num_choices) == (0, 1)
    chat = read("embeddings", {"messages": [{"role": "user", "content": "Hello"}]})
    assert chat.num_prompt_chars == 5


def test_scores_count_the_query_with_each_document() -> None:
    query = "what is it " * 20
    one = read("rerank", {"query": query, "documents": ["a"]})
    many = read("rerank", {"query": query, "documents": ["a", {"text": "b"}, "c"]})
    assert many.num_prompt_tokens > 2.5 * one.num_prompt_tokens
    pairs = read("score", {"text_1": [query, query], "text_2": ["a", "b"]})
    assert pairs.num_prompt_tokens == pytest.approx(2 * one.num_prompt_tokens, rel=0.1)
    assert pairs.max_tokens == 0


BAD = [
    ("chat", {"model": None, "messages": []}, "model"),
    ("chat", {"model": "", "messages": []}, "model"),
    ("chat", {"model": "a\nb", "messages": []}, "model"),
    ("chat", {"model": 7, "messages": []}, "model"),
    ("chat", {}, "messages"),
    ("chat", {"messages": {}}, "messages"),
    ("chat", {"messages": ["x"]}, "messages[0]"),
    ("chat", {"messages": [], "max_tokens": -1}, "max_tokens"),
    ("chat", {"messages": [], "max_tokens": True}, "max_tokens"),
    ("chat", {"messages": [], "max_tokens": 1.5}, "max_tokens"),
    ("chat", {"messages": [], "max_tokens": 10**30}, "max_tokens"),
    ("chat", {"messages": [], "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ("chat", {"messages": [], "n": 0}, "n"),
    ("chat", {"messages": [], "stream": "yes"}, "stream"),
    ("completions", {}, "prompt"),
    ("completions", {"prompt": [{"a": 1}]}, "prompt[0]"),
    ("embeddings", {"input": 5}, "input"),
    ("responses", {}, "input"),
    ("responses", {"input": [5]}, "input[0]"),
    ("rerank", {"query": "x"}, "documents"),
    ("score", {"text_2": "x"}, "text_1"),
]


@pytest.mark.parametrize(("route", "body", "param"), BAD)
def test_errors_name_the_field(route: Route, body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(route, body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"\xff", b'{"model": "\xff"}', b"[" * 5000, b"{} x", b"1e999"],
)
def test_what_is_no_object(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        read("chat", body)


NAMES = """
model messages role content type text input prompt n max_tokens tools image_url source
data stream response_format metadata user query documents text_1 text_2 system
instructions tool_calls output thinking json_schema functions tool_choice best_of user_id
suffix
"""
names = st.sampled_from(NAMES.split())
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | st.sampled_from(["user", "text", "image", "image_url", "document", "m", "none"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
    max_leaves=15,
)


@pytest.mark.parametrize(
    "values", [["00-1-2-01"], [TRACE, TRACE], ["x-evil-y"], [TRACE + "\u00e9"]]
)
def test_a_trace_that_is_none_is_not_handed_on(values: list[str]) -> None:
    headers = [(b"traceparent", value.encode("latin-1")) for value in values]
    assert read("chat", {"messages": []}, headers=headers).traceparent == ""


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(st.sampled_from(sorted(ROUTES)), st.dictionaries(names, values, max_size=8))
@example("chat", {"messages": [{"content": [[[["x"]]]]}]})
@example("chat", {"messages": [{"role": "user", "content": 1.5}]})
@example("messages", {"system": [{"type": []}], "messages": [{"content": [{"type": {}}]}]})
def test_any_json_is_read_or_refused(route: Route, body: dict[str, Any]) -> None:
    for candidate in (body, {**body, "model": "m"}):
        try:
            call = read(route, json.dumps(candidate).encode())
        except InvalidRequestError:
            continue
        assert call.num_prompt_chars >= 0
        assert call.num_choices >= 1
        assert len(call.block_hashes) <= 4


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        read("chat", data)


def test_deep_bodies_are_read_or_refused() -> None:
    """How deep is too deep is Python's affair; nothing else than a refusal comes of it."""

    def read_nested(depth: int) -> Call:
        content = "[" * depth + "]" * depth
        body = f'{{"model":"m","messages":[{{"role":"user","content":{content}}}]}}'
        return read("chat", body.encode())

    assert read_nested(100).num_prompt_chars == 0
    for depth in range(200, 1100, 50):
        with contextlib.suppress(InvalidRequestError):
            read_nested(depth)
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        read_nested(100_000)


def test_equal_beginnings_have_equal_hashes() -> None:
    system = {"role": "system", "content": "x" * 150}
    first = read("chat", {"messages": [system, {"role": "user", "content": "a" * 50}]})
    second = read("chat", {"messages": [system, {"role": "user", "content": "b" * 50}]})
    longer = read(
        "chat",
        {
            "messages": [
                system,
                {"role": "user", "content": "a" * 50},
                {"role": "user", "content": "c" * 99},
            ]
        },
    )
    assert first.block_hashes[:2] == second.block_hashes[:2]
    assert first.block_hashes[2] != second.block_hashes[2]
    assert longer.block_hashes[:3] == first.block_hashes
    assert len(longer.block_hashes) == 4  # no more is looked at
    assert len({*longer.block_hashes}) == 4


def test_hashes_tell_tenants_images_and_tools_apart() -> None:
    def hashes(content: object, tenant: str = "", **more: object) -> tuple[bytes, ...]:
        body = {"messages": [{"role": "user", "content": content}], **more}
        return read("chat", body, key=KeyInfo(key_id="k", tenant=tenant)).block_hashes

    other = {"type": "image_url", "image_url": {"url": "data:image/png;base64,BBBB"}}
    found = [
        hashes("hello"),
        hashes("hello", "acme"),  # backends part their caches by tenant
        hashes("hello", tools=[TOOL]),
        hashes([IMAGE]),
        hashes([other]),
    ]
    assert len({*found}) == len(found)
    assert hashes([IMAGE]) == hashes([IMAGE])
    assert read("chat", {"messages": []}).block_hashes == ()


def test_who_and_what_for() -> None:
    body = {"messages": [], "metadata": {"feature": "own", "project": "p"}, "user": "alice"}
    headers = [(b"x-octavo-session", b"s1"), (b"x-octavo-tenant", b"victim")]
    call = read("chat", body, headers=headers)
    assert (call.feature, call.session_id, call.tenant) == ("own", "s1", "")
    assert call.tags == {"project": "p", "user": "alice"}
    key = KeyInfo(
        key_id="k", tenant="acme", features=("*", "fallback"), tags={"project": "q", "cost": "c"}
    )
    issued = read("chat", body, headers=headers, key=key)
    assert issued.tenant == "acme"
    assert issued.tags == {"project": "q", "user": "alice", "cost": "c"}
    assert issued.feature == "own"
    assert read("chat", {"messages": []}, key=key).feature == "fallback"
    trusting = ReadSettings(routing=RoutingSection(trust_tenant=True))
    assert read("chat", body, headers=headers, settings=trusting).tenant == "victim"
    assert read("chat", body, headers=headers, key=key, settings=trusting).tenant == "acme"


def test_the_keys_tags_have_room() -> None:
    metadata = {f"t{index}": "x" for index in range(16)}
    key = KeyInfo(key_id="k", tags={"a": "1", "b": "2"})
    tags = read("chat", {"messages": [], "metadata": metadata}, key=key).tags
    assert len(tags) == 16
    assert tags["a"] == "1"


def test_settings_follow_the_rules() -> None:
    base = "backends: {a: {url: 'http://a', models: {m: {}}}}\ntiers: {t: {targets: [a/m]}}\n"
    config, problems = parse(
        (
            base + "rules:\n  - {name: x, when: {headers: {X-Tier: a}}, tiers: [t]}\n"
            "  - {name: y, when: {languages: [de]}, tiers: [t]}\n"
        ).encode()
    )
    assert config is not None, problems
    found = read_settings(config)
    assert found.headers == frozenset({b"x-tier"})
    assert found.tells_language
    german = {"messages": [{"role": "user", "content": "Wie kann ich mein Passwort ändern?"}]}
    assert read("chat", german, settings=found).language == "de"
    assert read("chat", german).language == ""
    assert not read_settings(parse(base.encode())[0] or config).tells_language
