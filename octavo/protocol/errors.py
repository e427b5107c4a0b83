"""OpenAI's error body. Knows nothing of HTTP: a status is only a number of the exception."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from octavo.errors import RequestError


class ErrorDetail(msgspec.Struct, frozen=True):
    """What is inside `error`: one line for a person, and words for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The whole body: `{"error": {...}}`."""

    error: ErrorDetail

    @classmethod
    def of(cls, exc: RequestError) -> ErrorBody:
        """The body that tells of this exception."""
        return cls(ErrorDetail(exc.message, exc.type, exc.param, exc.code))
