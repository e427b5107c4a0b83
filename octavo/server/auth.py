"""API keys: pure ASGI middleware in front of every path but the open ones, also of unknown ones.

Keys are kept as SHA-256 only. The presented key is compared with all of them in constant time, so
that the time of an answer tells neither how much of a key is right nor which one. A request's
tenant, for fair scheduling, is the beginning of its key's digest.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from octavo.errors import AuthenticationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send


def tenant_of(scope: Scope) -> str:
    """Whom to count the request to: one tenant per API key; without keys all are one."""
    tenant: str = scope.get("state", {}).get("tenant", "")
    return tenant


class Authentication:
    """Refuses requests without a valid key in `Authorization: Bearer`, or in `X-Api-Key` alone.

    Args:
        app: what is protected.
        digests: of the valid keys (`config.api_key_digest`); none: everybody passes.
        open_paths: need no key; as the request line spells them, whatever its `Host` is.
    """

    def __init__(self, app: ASGIApp, digests: Iterable[bytes], open_paths: Collection[str]) -> None:
        self._app = app
        self._digests = list(digests)
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it.

        Raises:
            AuthenticationError: no key, or not one of ours.
        """
        if self._digests and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if self._digests and scope["type"] == "http" and scope["path"] not in self._open_paths:
            self._authenticate(scope)
        await self._app(scope, receive, send)

    def _authenticate(self, scope: Scope) -> None:
        key = presented_key(scope)
        if key is None:
            raise AuthenticationError(
                "Give an API key in the header: Authorization: Bearer KEY", code="missing_api_key"
            )
        digest = hashlib.sha256(key).digest()
        scope.setdefault("state", {})["tenant"] = digest.hex()[:16]
        is_valid = False
        for known in self._digests:
            is_valid |= hmac.compare_digest(digest, known)
        if not is_valid:
            raise AuthenticationError("The API key is not valid", code="invalid_api_key")


def presented_key(scope: Scope) -> bytes | None:
    """The key that the request brings; None: none, or headers that may be read in two ways."""
    bearers = [value for name, value in scope["headers"] if name == b"authorization"]
    plain = [value for name, value in scope["headers"] if name == b"x-api-key"]  # Anthropic's
    if not bearers and len(plain) == 1:
        return plain[0].strip() or None
    scheme, _, key = bearers[0].partition(b" ") if len(bearers) == 1 else (b"", b"", b"")
    return key.strip() or None if scheme.lower() == b"bearer" else None
