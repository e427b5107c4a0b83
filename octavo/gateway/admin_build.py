"""The admin API's and page's routes over the parts that are in force."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from octavo.gateway.admin import AdminParts, BudgetsState, admin_endpoints
from octavo.gateway.admin_burn import BurnDown
from octavo.gateway.admin_explain import explain
from octavo.gateway.admin_ledger import LedgerViews
from octavo.gateway.admin_page.serve import page_routes
from octavo.gateway.keys import inline_key
from octavo.gateway.overview import overview

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.routing import Route

    from octavo.gateway.admin_recent import RecentAttempts
    from octavo.gateway.key_store import KeyStore
    from octavo.gateway.model import KeyInfo
    from octavo.gateway.parts import Parts


def admin_routes(
    parts: Callable[[], Parts],
    *,
    reload: Callable[[], Awaitable[object]],
    recent: RecentAttempts,
    keys: KeyStore | None = None,
    ledger_url: str = "",
) -> list[Route]:
    """The page and all that it asks for, to be mounted outside of the callers' authentication.

    Args:
        parts: gives those in force.
        reload: see `admin.AdminParts`.
        recent: gets what requests come to.
        keys: of the ledger; None: there is none.
        ledger_url: likewise; empty.
    """

    def all_keys() -> dict[str, KeyInfo]:
        found = [inline_key(key)[1] for key in parts().config.keys.inline]
        after = ""
        while keys is not None and (page := keys.keys(after=after)):
            found += [key.info for key in page]
            after = page[-1].info.key_id
        return {key.key_id: key for key in found}

    def keys_of_team(team: str) -> Sequence[str]:
        return [key.key_id for key in all_keys().values() if key.team == team]

    views = LedgerViews(ledger_url, keys_of_team=keys_of_team) if ledger_url else None

    def attempts(request_id: str) -> dict[str, object]:
        kept = recent.view(request_id)
        if kept or views is None:
            return {"attempts": kept, "escalations": []}
        return views.attempts(request_id)

    def of_now() -> AdminParts:
        now = parts()
        config = now.config
        return AdminParts(
            admin_keys=config.admin.keys,
            keys=keys,
            book=now.keys,
            limits=now.limits,
            budgets=now.budgets if isinstance(now.budgets, BudgetsState) else None,
            limit_names=config.limits.rules.keys(),
            budget_names=config.budgets.rules.keys(),
            routes=lambda: overview(now),
            reload=reload,
            escalations=None if views is None else views.escalations,
            spend=None if views is None else views.spend,
            burn=(
                BurnDown(ledger_url, config.budgets.rules, all_keys).history if ledger_url else None
            ),
            attempts=attempts,
            explain=functools.partial(explain, now),
            num_inline_keys=len(config.keys.inline),
        )

    return [*page_routes(lambda: bool(parts().config.admin.keys)), *admin_endpoints(of_now)]
