"""`GET /health`, `GET /version` and `GET /metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from octavo.server.context import context_of
from octavo.server.http import json_response
from octavo.version import __version__

if TYPE_CHECKING:
    from starlette.requests import Request


async def health(request: Request) -> Response:
    """200 while the engine takes requests and answers them.

    Raises:
        EngineUnavailableError: it is dead, stuck, restarting or shutting down.
    """
    context_of(request).engine.check_health()
    return json_response({"status": "ok"})


async def version(request: Request) -> Response:
    """Octavo's version."""
    return json_response({"version": __version__})


async def metrics(request: Request) -> Response:
    """All metrics in Prometheus' format."""
    accept = request.headers.get("accept", "")
    body, content_type = context_of(request).metrics.exposition(accept)
    return Response(body, headers={"content-type": content_type})
