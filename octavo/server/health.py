"""What probes, load balancers and monitoring ask: health, readiness, load, version, metrics.

Three questions are apart. Alive: is it of use to wait for this process? Healthy: does the engine
take requests and answer them? Ready: should new requests come here? While a failed engine is being
started again the server is alive, but not healthy; while it drains it is both, but not ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from octavo.errors import EngineUnavailableError
from octavo.protocol.status import Load, Status, Version
from octavo.server.context import context_of
from octavo.server.http import json_response
from octavo.version import __version__

if TYPE_CHECKING:
    from starlette.requests import Request


async def health(request: Request) -> Response:
    """Whether the engine takes requests and answers them.

    Raises:
        EngineUnavailableError: it is dead, stuck, restarting or shutting down.
    """
    context_of(request).engine.check_health()
    return json_response(Status())


async def alive(request: Request) -> Response:
    """Whether the server lives: only the end of an engine that will not come back is its end.

    Raises:
        EngineUnavailableError: the engine is dead for good.
    """
    try:
        context_of(request).engine.check_health()
    except EngineUnavailableError as exc:
        if exc.code == "engine_dead":
            raise
    return json_response(Status())


async def ready(request: Request) -> Response:
    """Whether new requests should come here: the engine is healthy, and the server does not drain.

    Raises:
        EngineUnavailableError: not now.
    """
    context = context_of(request)
    context.lifecycle.check_open()
    context.engine.check_health()
    return json_response(Status())


async def load(request: Request) -> Response:
    """How many requests this server works on, in all of its processes."""
    return json_response(Load(context_of(request).lifecycle.open_requests.total))


async def version(request: Request) -> Response:
    """Octavo's version."""
    return json_response(Version(__version__))


async def metrics(request: Request) -> Response:
    """All metrics in Prometheus' format."""
    accept = request.headers.get("accept", "")
    body, content_type = context_of(request).metrics.exposition(accept)
    return Response(body, headers={"content-type": content_type})
