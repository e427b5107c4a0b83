"""How `/v1/responses` spells errors: streams have named events and no mark at their end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.protocol import sse
from octavo.protocol.errors import ErrorBody, ErrorDetail
from octavo.protocol.responses import ErrorEvent
from octavo.server.dialect import Dialect

if TYPE_CHECKING:
    from octavo.errors import RequestError


def _error_event(exc: RequestError) -> bytes:
    detail = ErrorDetail(exc.message, exc.type, exc.param, exc.code)
    event = ErrorEvent(code=exc.code, message=exc.message, param=exc.param, error=detail)
    return sse.named_event("error", event)


RESPONSES = Dialect(error_body=ErrorBody.of, error_event=_error_event)
"""OpenAI's of this API."""
