"""`octavo keys` through a gateway's admin API."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from octavo.errors import ConfigError
from octavo.gateway.key_forms import KeyView


class _Page(msgspec.Struct):
    data: list[KeyView]
    has_more: bool = False


class RemoteKeys:
    """Keys of a running gateway; see `keys.Keys`. Use it in a `with`.

    Args:
        url: of the gateway, with or without `/admin/v1`.
        admin_key: sent to it.
        timeout_s: a request that takes longer fails.

    Raises:
        ConfigError: the URL is none.
    """

    def __init__(self, url: str, admin_key: str, timeout_s: float) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"--url {url!r} is no URL: write http://127.0.0.1:8080")
        path = parts.path.rstrip("/").removesuffix("/admin/v1")
        self._base = f"{parts.scheme}://{parts.netloc}{path}/admin/v1"
        try:
            headers = {"Authorization": f"Bearer {admin_key}"}
            self._http = httpx.Client(headers=headers, timeout=timeout_s)
        except (UnicodeEncodeError, ValueError):
            raise ConfigError("the admin key has characters that no header carries") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.close()

    def create(self, body: dict[str, Any]) -> KeyView:
        """Make a key."""
        return self._key("POST", "/keys", body)

    def keys(self, tenant: str, with_revoked: bool) -> list[KeyView]:
        """All keys."""
        views: list[KeyView] = []
        has_more = True
        while has_more:
            query = {
                "tenant": tenant,
                "revoked": str(with_revoked).lower(),
                "limit": "1000",
                "after": views[-1].id if views else "",
            }
            page = msgspec.json.decode(self._ask("GET", "/keys", params=query), type=_Page)
            views += page.data
            has_more = page.has_more
        return views

    def show(self, key_id: str) -> KeyView:
        """One key."""
        return self._key("GET", f"/keys/{quote(key_id, safe='')}")

    def rotate(self, key_id: str, overlap_s: float) -> KeyView:
        """Give it a new secret."""
        path = f"/keys/{quote(key_id, safe='')}/rotate"
        return self._key("POST", path, {"overlap_s": overlap_s})

    def revoke(self, key_id: str, reason: str) -> KeyView:
        """End it."""
        return self._key("DELETE", f"/keys/{quote(key_id, safe='')}", {"reason": reason})

    def _key(self, method: str, path: str, body: dict[str, Any] | None = None) -> KeyView:
        return msgspec.json.decode(self._ask(method, path, json=body), type=KeyView)

    def _ask(self, method: str, path: str, **request: Any) -> bytes:
        try:
            answer = self._http.request(method, self._base + path, **request)
        except httpx.HTTPError as error:
            raise ConfigError(f"no answer from {self._base}: {error}") from None
        if answer.status_code != 200:
            said = answer.text[:300]
            with suppress(ValueError, KeyError, TypeError):
                said = answer.json()["error"]["message"]
            raise ConfigError(f"{self._base} answered {answer.status_code}: {said}")
        return answer.content
