"""What the admin API tells of the gateway as a whole and of single requests; see `admin`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from octavo.errors import NotFoundError
from octavo.protocol.decode import decode
from octavo.server.http import read_body
from octavo.version import __version__

if TYPE_CHECKING:
    from starlette.requests import Request

    from octavo.gateway.admin import AdminParts

MAX_BODY_BYTES = 8 * 1024**2
"""A request that is explained may be a long one."""


async def show_overview(request: Request, parts: AdminParts, actor: str) -> object:
    """What there is to administer, and who asks."""
    return {
        "actor": actor,
        "version": __version__,
        "has_ledger": parts.keys is not None,
        "num_inline_keys": parts.num_inline_keys,
        "limits": sorted(parts.limit_names),
        "budgets": sorted(parts.budget_names),
    }


async def show_request(request: Request, parts: AdminParts, actor: str) -> object:
    """The attempts of one request, and its escalations.

    Raises:
        NotFoundError: this gateway remembers none.
    """
    if parts.attempts is None:
        raise NotFoundError("This gateway remembers no requests", code="no_ledger")
    return await asyncio.to_thread(parts.attempts, request.path_params["request_id"])


async def explain(request: Request, parts: AdminParts, actor: str) -> object:
    """Where a request would go, without sending it.

    Raises:
        NotFoundError: this gateway explains none.
    """
    from octavo.gateway.admin_explain import ExplainRequest

    if parts.explain is None:
        raise NotFoundError("This gateway explains no requests", code="no_router")
    return await parts.explain(decode(await read_body(request, MAX_BODY_BYTES), ExplainRequest))
