"""`/openapi.json` says what the server does: valid, complete, and kept under schemathesis' fire."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

import jsonschema_rs
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.errors import InvalidSchema
from schemathesis.specs.openapi import checks
from starlette.routing import Route, Router

from octavo.config import ServerConfig, api_key_digest
from octavo.server.app import create_app
from octavo.server.routes import ENDPOINTS
from tests.server.fake_engine import FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from schemathesis import BaseSchema, Case

    from octavo.server.routes import Endpoint
    from tests.server.conftest import RunningServer

OPERATIONS = [(method, e) for e in ENDPOINTS for method in e.methods]
WITH_BODY = [(method, e) for method, e in OPERATIONS if e.request is not None]
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
]
MESSAGES = [{"role": "user", "content": "hello"}]
GOOD_BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        {"model": "fake", "prompt": "hello", "max_tokens": 4, "stream": stream, "logprobs": 2}
        for stream in (False, True)
    ],
    "/v1/chat/completions": [
        {"model": "fake", "messages": MESSAGES, "max_tokens": 4, "stream": stream, "logprobs": True}
        for stream in (False, True)
    ],
    "/v1/messages": [
        {"model": "fake", "messages": MESSAGES, "max_tokens": 4, "stream": stream}
        for stream in (False, True)
    ],
    "/v1/messages/count_tokens": [{"model": "fake", "messages": MESSAGES}],
    "/v1/embeddings": [
        {"model": "fake", "input": ["hello", "world"], "encoding_format": kind, "dimensions": 3}
        for kind in ("float", "base64")
    ],
    "/pooling": [
        {"model": "fake", "input": [[5, 6], [7]]},
        {"model": "fake", "input": "hello", "task": "classify", "encoding_format": "base64"},
    ],
    "/classify": [{"model": "fake", "input": ["hello", "world"]}],
    **{
        path: [{"model": "fake", "text_1": "hello", "text_2": ["hello", "world"]}]
        for path in ("/score", "/v1/score")
    },
    **{
        path: [
            {"model": "fake", "query": "a", "documents": ["b", {"text": "a"}], "top_n": 1},
            {"model": "fake", "query": "a", "documents": ["b"], "return_documents": False},
        ]
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    },
    "/v1/responses": [
        {"model": "fake", "input": "hello", "max_output_tokens": 4, **fields}
        for fields in ({}, {"stream": True}, {"background": True}, {"input": MESSAGES})
    ],
    "/api/chat": [
        {"model": "fake", "messages": MESSAGES, "options": {"num_predict": 4}, "stream": stream}
        for stream in (False, True)
    ],
    "/api/generate": [
        {"model": "fake", "prompt": "hello", "options": {"num_predict": 4}, "stream": stream}
        for stream in (False, True)
    ],
    "/api/embed": [{"model": "fake", "input": ["hello", "you"]}],
    "/api/embeddings": [{"model": "fake", "prompt": "hello"}],
    "/api/show": [{"model": "fake"}],
    "/v1/batches": [],  # needs a file: see test_batches.py
    "/v1/outcomes": [],  # needs a ledger: see test_outcomes.py
    "/tokenize": [{"prompt": "hello", "return_token_strs": True}, {"messages": MESSAGES}],
    "/detokenize": [{"tokens": [5, 6]}],
}
"""Requests that every route with a body must answer, so that its answers are looked at too."""

FIRE = settings(
    max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def name_of(value: Any) -> str | None:
    return getattr(value, "path", None)


def documented_path(endpoint: Endpoint) -> str:
    return endpoint.path.replace(":path}", "}")


@pytest.fixture
def fired(
    serve: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RunningServer, BaseSchema]]:
    """A server with a small context, and what schemathesis makes of its document."""
    monkeypatch.setenv("NO_PROXY", "*")
    server = serve(engine=FakeEngine(max_model_len=32))
    yield server, schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    server.assert_serves()


def document_of(server: RunningServer) -> dict[str, Any]:
    response = server.client.get("/openapi.json")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    document: dict[str, Any] = response.json()
    return document


# What schemathesis finds


@pytest.mark.parametrize(("method", "endpoint"), OPERATIONS, ids=name_of)
def test_requests_as_documented(
    fired: tuple[RunningServer, BaseSchema], method: str, endpoint: Endpoint
) -> None:
    """No 5xx, documented statuses, types and headers only; and good requests come through."""
    _, schema = fired
    fields = msgspec.structs.fields(endpoint.request) if endpoint.request else ()
    always = {f.encode_name for f in fields if f.required} | {"prompt", "messages", "input"}

    @FIRE
    @given(case=schema[documented_path(endpoint)][method].as_strategy(), data=st.data())
    def fire(case: Case, data: st.DataObject) -> None:
        if isinstance(case.body, dict):
            others = st.sets(st.sampled_from(sorted(case.body) or ["model"]), max_size=3)
            kept = always | data.draw(others)
            case.body = {name: value for name, value in case.body.items() if name in kept}
            if "model" in case.body and data.draw(st.integers(0, 3)):
                case.body["model"] = "fake"
        response = case.call()
        case.validate_response(response, checks=CHECKS)

    fire()
    for body in GOOD_BODIES[endpoint.path] if endpoint.request else ():
        case = schema[documented_path(endpoint)][method].Case(
            body=body, media_type="application/json"
        )
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        assert response.status_code == 200


@pytest.mark.parametrize(("method", "endpoint"), WITH_BODY, ids=name_of)
def test_requests_that_break_the_document_are_refused(
    fired: tuple[RunningServer, BaseSchema], method: str, endpoint: Endpoint
) -> None:
    operation = fired[1][documented_path(endpoint)][method]

    broken = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @FIRE
    @given(data=st.data())
    def fire(data: st.DataObject) -> None:
        try:
            case = data.draw(broken)
        except InvalidSchema:  # schemathesis knows no way to break the part that it chose
            reject()
        case.call_and_validate(checks=CHECKS)

    fire()


# What it says


def test_it_is_valid(serve: Callable[..., RunningServer]) -> None:
    for keys in ((), ("sk-1",)):
        server = serve(api_keys=keys, headers={"Authorization": "Bearer sk-1"})
        document = document_of(server)
        assert document["openapi"] == "3.1.0"
        schemathesis.openapi.from_dict(document).validate()
        for name, schema in document["components"]["schemas"].items():
            dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
            jsonschema_rs.meta.validate(schema | dialect)
            assert re.fullmatch(r"[\w.-]+", name)
        ids = [
            operation["operationId"]
            for item in document["paths"].values()
            for operation in item.values()
        ]
        assert len(set(ids)) == len(ids)
        assert all(
            ref.startswith("#/components/schemas/")
            and ref.rpartition("/")[2] in document["components"]["schemas"]
            for ref in re.findall(r'"\$ref":"([^"]*)"', msgspec.json.encode(document).decode())
        )


def routers(app: Any) -> Iterator[Router]:
    """The routers within an application's layers."""
    while app is not None:
        if isinstance(app, Router):
            yield app
            return
        app = getattr(app, "_stack", None) or getattr(app, "_app", None)


def test_every_route_is_in_it_and_nothing_else(server: RunningServer) -> None:
    document = document_of(server)
    (router,) = routers(server.app)
    served = set()
    for route in router.routes:
        assert isinstance(route, Route)
        for method in set(route.methods or ()) - {"HEAD"}:
            served.add((method.lower(), route.path.replace(":path}", "}")))
    documented = {(m, path) for path, item in document["paths"].items() for m in item}
    assert documented == served
    for item in document["paths"].values():
        assert all(operation["summary"] for operation in item.values())


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_every_field_of_a_type_is_in_it(server: RunningServer, endpoint: Endpoint) -> None:
    schemas = document_of(server)["components"]["schemas"]
    events = get_args(endpoint.event) or (endpoint.event,)  # a union is known by its members
    for kind in (endpoint.request, endpoint.answer, *events):
        if kind is None:
            continue
        schema = schemas[kind.__name__]
        fields = msgspec.structs.fields(kind)
        required = {field.encode_name for field in fields if field.required}
        tag = kind.__struct_config__.tag_field
        required |= {tag} if tag else set()
        assert set(schema.get("required", ())) == required
        assert set(schema["properties"]) == required | {field.encode_name for field in fields}
        if kind is endpoint.request:
            assert schema["additionalProperties"] is False


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_events_of_a_stream_are_of_the_documented_type(server: RunningServer, kind: str) -> None:
    document = document_of(server)
    path = {"completion": "/v1/completions", "chat": "/v1/chat/completions"}[kind]
    content = document["paths"][path]["post"]["responses"]["200"]["content"]
    event_schema = content["text/event-stream"]["schema"]
    value, done = event_schema["properties"]["data"]["anyOf"]
    assert done == {"const": "[DONE]"}
    schema = value["contentSchema"]
    validator = jsonschema_rs.Draft202012Validator({**document, **schema})
    fields = {"logprobs": 2} if kind == "completion" else {"logprobs": True, "top_logprobs": 2}
    ask = getattr(server, kind)
    text = ask(
        stream=True,
        n=2,
        return_token_ids=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        **fields,
    ).text
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    assert len(events) > 10
    for event in events:
        validator.validate(msgspec.json.decode(event))
    with pytest.raises(jsonschema_rs.ValidationError):
        validator.validate({**msgspec.json.decode(events[0]), "created": "today"})
    server.engine.fail_at = 4
    *_, error, _ = [
        line.removeprefix("data: ") for line in ask(stream=True).text.split("\n\n") if line
    ]
    validator.validate(msgspec.json.decode(error))
    assert "error" in msgspec.json.decode(error)


def test_keys_are_in_it_where_they_are_needed() -> None:
    def operations(*keys: str) -> tuple[dict[str, Any], dict[str, Any]]:
        digests = tuple(map(api_key_digest, keys))
        config = ServerConfig(served_model_names=("m",), api_key_digests=digests)
        app = create_app(FakeEngine(), FakeTokenizer(), config)
        document = msgspec.json.decode(app.openapi_body)
        paths = document["paths"]
        return document, {path: next(iter(item.values())) for path, item in paths.items()}

    document, free = operations()
    assert "security" not in document
    assert not any("401" in operation["responses"] for operation in free.values())
    document, guarded = operations("sk-1")
    used = [
        document["components"]["securitySchemes"][name]
        for alternative in document["security"]
        for name in alternative
    ]
    assert used == [
        {"type": "http", "scheme": "bearer"},
        {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    ]
    open_paths = {path for path, operation in guarded.items() if operation.get("security") == []}
    assert open_paths == {"/health", "/health/live", "/health/ready", "/ping"}
    for path, operation in guarded.items():
        assert ("401" in operation["responses"]) == (path not in open_paths)
