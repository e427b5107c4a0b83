"""Wire types of the routes that probes and monitoring ask."""

from __future__ import annotations

import msgspec


class Status(msgspec.Struct, frozen=True):
    """All is well; what is not is an error."""

    status: str = "ok"


class Load(msgspec.Struct, frozen=True):
    """Requests that the server works on (vLLM's shape)."""

    server_load: int


class Version(msgspec.Struct, frozen=True):
    """Octavo's version."""

    version: str
