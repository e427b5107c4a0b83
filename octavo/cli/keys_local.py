"""`octavo keys` with a ledger's database."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.gateway.key_forms import KeyCreate, KeyRevoke, KeyRotate, view_of
from octavo.gateway.key_store import MAX_PAGE, KeyStore
from octavo.protocol.decode import decode

if TYPE_CHECKING:
    from octavo.gateway.key_forms import KeyView


class LocalKeys:
    """Keys in a ledger; see `keys.Keys`.

    Args:
        url: of the ledger.
        create: make the ledger where there is none.
    """

    def __init__(self, url: str, *, create: bool) -> None:
        self._store = KeyStore(url, create=create)
        try:
            self._actor = f"cli:{getpass.getuser()}"
        except (OSError, KeyError):  # this user has no name
            self._actor = "cli:"

    def create(self, body: dict[str, Any]) -> KeyView:
        """Make a key."""
        form = decode(msgspec.json.encode(body), KeyCreate)
        return view_of(*self._store.create(form.info(), actor=self._actor))

    def keys(self, tenant: str, with_revoked: bool) -> list[KeyView]:
        """All keys."""
        views: list[KeyView] = []
        while True:
            after = views[-1].id if views else ""
            page = self._store.keys(tenant=tenant, with_revoked=with_revoked, after=after)
            views += map(view_of, page)
            if len(page) < MAX_PAGE:
                return views

    def show(self, key_id: str) -> KeyView:
        """One key."""
        return view_of(self._store.get(key_id))

    def rotate(self, key_id: str, overlap_s: float) -> KeyView:
        """Give it a new secret."""
        form = decode(msgspec.json.encode({"overlap_s": overlap_s}), KeyRotate)
        rotated = self._store.rotate(key_id, overlap_s=form.overlap_s, actor=self._actor)
        return view_of(*rotated)

    def revoke(self, key_id: str, reason: str) -> KeyView:
        """End it."""
        form = decode(msgspec.json.encode({"reason": reason}), KeyRevoke)
        return view_of(self._store.revoke(key_id, actor=self._actor, reason=form.reason))

    def close(self) -> None:
        """End the connection."""
        self._store.close()
