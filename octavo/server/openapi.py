"""`GET /openapi.json`: the API as OpenAPI 3.1, made of the table of routes and the wire types.

Knows no route: what the table and the types' docstrings say is all that there is to say.

Source: https://spec.openapis.org/oas/v3.1.1.html
"""

from __future__ import annotations

import inspect
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from octavo.protocol import sse
from octavo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.requests import Request

    from octavo.server.routes import Endpoint

SSE = "text/event-stream"
JSON = "application/json"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
_REQUEST_ID = {
    "description": "The caller's id of this request, else one of the server's",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
}
_STATUS_HEADERS: Mapping[int, Mapping[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    503: {
        "Retry-After": {
            "description": "Seconds after which it is worth another try, where that is known",
            "schema": {"type": "integer", "minimum": 0},
        }
    },
}


async def openapi(request: Request) -> Response:
    """This document."""
    body: bytes = request.app.openapi_body
    return Response(body, media_type=JSON)


def document(endpoints: Iterable[Endpoint], *, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI document of a server with these routes.

    Args:
        endpoints: all of them.
        needs_key: callers must present an API key.
    """
    endpoints = tuple(endpoints)
    types: dict[Any, None] = {}
    for endpoint in endpoints:
        error = endpoint.dialect.error_type
        named = (endpoint.request, endpoint.answer, endpoint.event, error)
        types |= dict.fromkeys(kind for kind in named if kind is not None)
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        item = paths.setdefault(_PARAMETER.sub(r"{\1}", endpoint.path), {})
        for method in endpoint.methods:
            item[method.lower()] = _operation(endpoint, method, schema_of, needs_key=needs_key)
    result: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    if needs_key:
        result["components"]["securitySchemes"] = _SCHEMES
        result["security"] = [{name: []} for name in _SCHEMES]  # either is enough
    return result


def error_statuses(endpoint: Endpoint, *, needs_key: bool) -> list[int]:
    """Every error status that the route may answer with, in rising order."""
    statuses = {431, *endpoint.statuses}
    if endpoint.request is not None:
        statuses |= {400, 408, 413}
    if needs_key and not endpoint.is_open:
        statuses.add(401)
    if not endpoint.is_operational:
        statuses.add(503)
    return sorted(statuses)


def _operation(
    endpoint: Endpoint, method: str, schema_of: Mapping[Any, Any], *, needs_key: bool
) -> dict[str, Any]:
    doc = inspect.getdoc(endpoint.handler) or ""
    name = endpoint.handler.__name__
    path_id = re.sub(r"\W+", "_", _PARAMETER.sub(r"\1", endpoint.path)).strip("_")
    operation: dict[str, Any] = {
        "operationId": f"{name}_{path_id}_{method.lower()}",
        "summary": doc.partition("\n\n")[0].replace("\n", " ").rstrip("."),
        "responses": {"200": _answer(endpoint, schema_of)},
    }
    parameters = [
        {
            "name": parameter,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1},
        }
        for parameter in _PARAMETER.findall(endpoint.path)
    ]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": schema_of[endpoint.request]}},
        }
    for status in error_statuses(endpoint, needs_key=needs_key):
        operation["responses"][str(status)] = {
            "description": HTTPStatus(status).phrase,
            "headers": {"X-Request-Id": _REQUEST_ID, **_STATUS_HEADERS.get(status, {})},
            "content": {JSON: {"schema": schema_of[endpoint.dialect.error_type]}},
        }
    if needs_key and endpoint.is_open:
        operation["security"] = []
    return operation


def _answer(endpoint: Endpoint, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {endpoint.media_type: {}}
    if endpoint.answer is not None:
        content[endpoint.media_type] = {"schema": schema_of[endpoint.answer]}
    elif endpoint.media_type != JSON:
        content[endpoint.media_type] = {"schema": {"type": "string"}}
    description = "The answer"
    if endpoint.event is not None:
        # Of a stream, the schema tells of each event: that is how tools read it, until OpenAPI 3.2
        # has a word of its own for it. A failure is an event, too.
        dialect = endpoint.dialect
        item: dict[str, Any] = {"anyOf": [schema_of[endpoint.event], schema_of[dialect.error_type]]}
        media_type = dialect.media_type.partition(";")[0]
        if media_type == SSE:
            description += "; with `stream`, server-sent events"
            data: dict[str, Any] = {
                "type": "string",
                "contentMediaType": JSON,
                "contentSchema": item,
            }
            if dialect.end == sse.DONE:
                description += ", the last one `[DONE]`"
                data = {"anyOf": [data, {"const": "[DONE]"}]}
            item = {"type": "object", "required": ["data"], "properties": {"data": data}}
        else:
            description += "; with `stream`, a line of JSON for each event"
        content[media_type] = {"schema": item}
    return {
        "description": description,
        "headers": {"X-Request-Id": _REQUEST_ID},
        "content": content,
    }
