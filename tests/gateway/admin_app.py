"""The admin API alone, over real parts, for tests of it and of its clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import Router

from octavo.errors import ConfigError
from octavo.gateway.admin import AdminParts, admin_endpoints
from octavo.gateway.config_keys import KeysSection
from octavo.gateway.config_limits import Limit, LimitsSection
from octavo.gateway.key_store import KeyStore
from octavo.gateway.keys import KeyBook
from octavo.gateway.limits import RateLimits
from octavo.gateway.secret import Secret
from octavo.server.errors import ErrorAnswers
from octavo.server.scope import RequestScope

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

ADMIN_KEY = "an-admin-key-of-tests"


class AdminApp:
    """An ASGI application.

    Args:
        url: of the ledger; empty: there is none.
    """

    def __init__(self, url: str) -> None:
        self.store = KeyStore(url) if url else None
        self.book = KeyBook(KeysSection(), self.store)
        section = LimitsSection(rules={"gold": Limit(requests_per_minute=5)})
        self.limits = RateLimits(section)
        self.config_error = ""
        self.num_reloads = 0
        self.asked: list[Any] = []
        routes = Router(admin_endpoints(self.parts), redirect_slashes=False)
        self._app = RequestScope(ErrorAnswers(routes, {}), lambda: False, ())

    def parts(self) -> AdminParts:
        return AdminParts(
            admin_keys={"root": Secret(ADMIN_KEY), "other": Secret("another-admin-key")},
            keys=self.store,
            book=self.book,
            limits=self.limits,
            limit_names=("gold",),
            budget_names=("month",),
            routes=lambda: {"backends": {"a": {"is_usable": True}}},
            reload=self._reload,
            spend=self._spend,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # or the router answers errors itself, without a body of ours
        await self._app(scope, receive, send)

    async def _reload(self) -> object:
        if self.config_error:
            raise ConfigError(self.config_error)
        self.num_reloads += 1
        return {"generation": self.num_reloads}

    def _spend(self, query: Any) -> object:
        self.asked.append(query)
        if query.get("by") == "colour":
            raise ConfigError("--by has no colour")
        return {"rows": []}
