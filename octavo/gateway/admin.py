"""The admin API under `/admin/v1`: keys, limits, budgets, routes, escalations, spend, audit log.

It has keys of its own (`admin.keys` of the configuration), which open nothing else, and callers'
keys do not open it. There are no cookies, so that no page of others can use a browser's rights.
What changes something is in the audit log, with the admin key's name.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import (
    AuthenticationError,
    ConfigError,
    EngineUnavailableError,
    InvalidRequestError,
    NotFoundError,
)
from octavo.gateway import admin_views
from octavo.gateway.key_forms import (
    KeyCreate,
    KeyPatch,
    KeyRevoke,
    KeyRotate,
    check_names,
    view_of,
)
from octavo.gateway.keys import digest_of
from octavo.ledger.database import DatabaseUnavailableError, DataRefusedError
from octavo.protocol.decode import decode
from octavo.server.http import read_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from starlette.requests import Request

    from octavo.gateway.admin_explain import ExplainRequest
    from octavo.gateway.audit import AuditEntry
    from octavo.gateway.key_store import KeyStore
    from octavo.gateway.keys import KeyBook
    from octavo.gateway.secret import Secret

    Handler = Callable[[Request, "AdminParts", str], Awaitable[object]]

logger = logging.getLogger("octavo.gateway")

PREFIX = "/admin/v1"
MAX_BODY_BYTES = 256 * 1024


class LimitsState(Protocol):
    """What is shown of limits (`limits.RateLimits`)."""

    async def state(self) -> Sequence[Mapping[str, object]]:
        """How the counters stand."""
        ...


@runtime_checkable
class BudgetsState(Protocol):
    """What is shown of budgets (`budgets`)."""

    async def state(self) -> Sequence[Mapping[str, object]]:
        """How the budgets of the current periods stand."""
        ...


@dataclass(frozen=True, kw_only=True)
class AdminParts:
    """What the admin API shows and changes, as it is now.

    Attributes:
        admin_keys: name, and key.
        keys: of the ledger; None: the gateway has no ledger.
        book: is told to read at once what was changed.
        limits: see `LimitsState`.
        budgets: see `BudgetsState`; None: there are none.
        limit_names: of the configuration, for keys to name.
        budget_names: likewise.
        routes: models, tiers and backends with their health.
        reload: reads the configuration anew; what it gives is shown. Raises ConfigError where that
            is wrong; the old one goes on then.
        escalations: by the query's parameters, in a thread; None: the gateway has no ledger.
        spend: likewise.
        burn: how a budget was used, likewise.
        attempts: of a request, by its id, in a thread.
        explain: where a request would go, without sending it.
        num_inline_keys: keys that stand in the configuration.
    """

    admin_keys: Mapping[str, Secret]
    keys: KeyStore | None
    book: KeyBook
    limits: LimitsState
    budgets: BudgetsState | None = None
    limit_names: Collection[str] = ()
    budget_names: Collection[str] = ()
    routes: Callable[[], object]
    reload: Callable[[], Awaitable[object]]
    escalations: Callable[[Mapping[str, str]], object] | None = None
    spend: Callable[[Mapping[str, str]], object] | None = None
    burn: Callable[[Mapping[str, str]], object] | None = None
    attempts: Callable[[str], object] | None = None
    explain: Callable[[ExplainRequest], Awaitable[object]] | None = None
    num_inline_keys: int = 0


def admin_endpoints(parts: Callable[[], AdminParts]) -> list[Route]:
    """The admin API's routes, to be mounted outside of the callers' authentication.

    Args:
        parts: gives those of now; a reload may have changed them.
    """
    endpoints: list[tuple[str, str, Handler]] = [
        ("GET", "/overview", admin_views.show_overview),
        ("GET", "/keys", _list_keys),
        ("POST", "/keys", _create_key),
        ("GET", "/keys/{key_id}", _show_key),
        ("PATCH", "/keys/{key_id}", _update_key),
        ("DELETE", "/keys/{key_id}", _revoke_key),
        ("POST", "/keys/{key_id}/rotate", _rotate_key),
        ("GET", "/limits", _show_limits),
        ("GET", "/budgets", _show_budgets),
        ("GET", "/budgets/history", functools.partial(_query, "burn")),
        ("GET", "/routes", _show_routes),
        ("GET", "/escalations", functools.partial(_query, "escalations")),
        ("GET", "/spend", functools.partial(_query, "spend")),
        ("GET", "/requests/{request_id}", admin_views.show_request),
        ("POST", "/explain", admin_views.explain),
        ("GET", "/audit", _show_audit),
        ("POST", "/reload", _reload),
    ]
    by_path: dict[str, dict[str, Handler]] = {}
    for method, path, handler in endpoints:
        by_path.setdefault(path, {})[method] = handler
    return [
        Route(PREFIX + path, _endpoint(parts, handlers), methods=list(handlers))
        for path, handlers in by_path.items()
    ]


def admin_name(request: Request, admin_keys: Mapping[str, Secret]) -> str:
    """The name of the admin key that a request brings in `Authorization: Bearer`.

    All keys are compared, each in constant time.

    Raises:
        AuthenticationError: none, or not one of ours.
    """
    values = request.headers.getlist("authorization")
    scheme, _, presented = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not presented.strip():
        raise AuthenticationError(
            "Give an admin key in the header: Authorization: Bearer KEY", code="missing_api_key"
        )
    digest = digest_of(presented.strip().encode("latin-1"))
    found = ""
    for name, key in admin_keys.items():
        if hmac.compare_digest(digest, digest_of(key.reveal().encode())):
            found = name
    if not found:
        raise AuthenticationError("The admin key is not valid", code="invalid_api_key")
    return found


def _endpoint(
    parts: Callable[[], AdminParts], handlers: Mapping[str, Handler]
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        now = parts()
        actor = f"admin:{admin_name(request, now.admin_keys)}"
        method = "GET" if request.method == "HEAD" else request.method
        try:
            value = await handlers[method](request, now, actor)
        except DatabaseUnavailableError:
            raise EngineUnavailableError(
                "The ledger's database does not answer",
                code="database_unavailable",
                retry_after_s=5,
            ) from None
        except DataRefusedError:
            raise InvalidRequestError("The database does not take such a value") from None
        headers = {"Cache-Control": "no-store"}  # a new key may be in it
        return Response(msgspec.json.encode(value), 200, headers, "application/json")

    return answer


async def _body(request: Request) -> bytes:
    return await read_body(request, MAX_BODY_BYTES) or b"{}"


def _keys_of(parts: AdminParts) -> KeyStore:
    if parts.keys is None:
        raise NotFoundError(
            "This gateway has no ledger, and its keys are those of its configuration: give "
            "ledger.url there",
            code="no_ledger",
        )
    return parts.keys


async def _list_keys(request: Request, parts: AdminParts, actor: str) -> object:
    query = _Query(request)
    limit = query.number("limit", 100, most=1000)
    page = await asyncio.to_thread(
        _keys_of(parts).keys,
        tenant=query.text("tenant"),
        with_revoked=query.flag("revoked"),
        after=query.text("after"),
        limit=limit + 1,
    )
    has_more = len(page) > limit
    return {"data": [view_of(key) for key in page[:limit]], "has_more": has_more}


async def _create_key(request: Request, parts: AdminParts, actor: str) -> object:
    info = decode(await _body(request), KeyCreate).info()
    check_names(msgspec.structs.asdict(info), parts.limit_names, parts.budget_names)
    stored, key = await asyncio.to_thread(_keys_of(parts).create, info, actor=actor)
    await parts.book.refresh()
    return view_of(stored, key)


async def _show_key(request: Request, parts: AdminParts, actor: str) -> object:
    return view_of(await asyncio.to_thread(_keys_of(parts).get, request.path_params["key_id"]))


async def _update_key(request: Request, parts: AdminParts, actor: str) -> object:
    changes = decode(await _body(request), KeyPatch).changes()
    if not changes:
        raise InvalidRequestError("The request changes nothing: give at least one field")
    check_names(changes, parts.limit_names, parts.budget_names)
    key_id = request.path_params["key_id"]
    stored = await asyncio.to_thread(_keys_of(parts).update, key_id, changes, actor=actor)
    await parts.book.refresh()
    return view_of(stored)


async def _rotate_key(request: Request, parts: AdminParts, actor: str) -> object:
    body = decode(await _body(request), KeyRotate)
    key_id = request.path_params["key_id"]
    stored, key = await asyncio.to_thread(
        _keys_of(parts).rotate, key_id, overlap_s=body.overlap_s, actor=actor
    )
    await parts.book.refresh()
    return view_of(stored, key)


async def _revoke_key(request: Request, parts: AdminParts, actor: str) -> object:
    body = decode(await _body(request), KeyRevoke)
    key_id = request.path_params["key_id"]
    stored = await asyncio.to_thread(
        _keys_of(parts).revoke, key_id, actor=actor, reason=body.reason
    )
    await parts.book.refresh()
    return view_of(stored)


async def _show_limits(request: Request, parts: AdminParts, actor: str) -> object:
    return {"data": await parts.limits.state()}


async def _show_budgets(request: Request, parts: AdminParts, actor: str) -> object:
    return {"data": [] if parts.budgets is None else await parts.budgets.state()}


async def _show_routes(request: Request, parts: AdminParts, actor: str) -> object:
    return parts.routes()


async def _query(name: str, request: Request, parts: AdminParts, actor: str) -> object:
    ask = getattr(parts, name)
    if ask is None:
        raise NotFoundError("This gateway has no ledger: give ledger.url", code="no_ledger")
    try:
        return await asyncio.to_thread(ask, dict(request.query_params))
    except ConfigError as error:  # of a filter or a time, as the command line has them
        raise InvalidRequestError(str(error)) from None


async def _show_audit(request: Request, parts: AdminParts, actor: str) -> object:
    query = _Query(request)
    limit = query.number("limit", 100, most=1000)
    entries: list[AuditEntry] = await asyncio.to_thread(
        _keys_of(parts).audit_entries,
        limit=limit,
        before_seq=query.number("before", 0) or None,
        subject=query.text("subject"),
        actor=query.text("actor"),
        action=query.text("action"),
    )
    return {"data": entries, "has_more": len(entries) == limit}


async def _reload(request: Request, parts: AdminParts, actor: str) -> object:
    """Read the configuration anew; a wrong one changes nothing, and is told of."""
    try:
        result = await parts.reload()
    except ConfigError as error:
        await _audit(parts, actor, "config.reload", error=str(error)[:2000])
        raise InvalidRequestError(
            f"The configuration is wrong, and the one before goes on: {error}", code="bad_config"
        ) from None
    await _audit(parts, actor, "config.reload")
    return result


async def _audit(parts: AdminParts, actor: str, action: str, **detail: Any) -> None:
    """Note what has happened already, so that the database's absence does not undo it."""
    if parts.keys is None:
        return
    try:
        await asyncio.to_thread(parts.keys.add_audit, actor, action, "", **detail)
    except DatabaseUnavailableError as error:
        logger.error("not in the audit log: %s by %s %s: %s", action, actor, detail, error)


class _Query:
    """Parameters of a URL, each taken at most once."""

    def __init__(self, request: Request) -> None:
        self._values = request.query_params

    def text(self, name: str) -> str:
        return self._values.get(name, "")

    def flag(self, name: str) -> bool:
        value = self.text(name).lower()
        if value not in ("", "0", "1", "true", "false"):
            raise InvalidRequestError(f"{name} must be true or false", param=name)
        return value in ("1", "true")

    def number(self, name: str, default: int, *, most: int = 2**63 - 1) -> int:
        value = self.text(name)
        if not value:
            return default
        is_number = value.isascii() and value.isdecimal() and len(value) < 20
        if not is_number or not 1 <= int(value) <= most:
            raise InvalidRequestError(f"{name} must be a number from 1 to {most}", param=name)
        return int(value)
