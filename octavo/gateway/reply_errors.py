"""What a backend's errors mean: whose fault they are, what record and client are told. Pure."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import RequestError, UpstreamError
from octavo.gateway.sse_events import error_message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from octavo.gateway.model import Route, Status

LIMITED = "upstream_rate_limited"
"""Code of the error where a backend says 429. For the client it is a 503: he is not limited."""
BUSY = "upstream_busy"
"""Likewise for 503, and says when to come again."""

MAX_MESSAGE_LEN = 300
MAX_AFTER_S = 86_400

NOT_THERE = frozenset((404, 405, 501))
"""This backend has no such route or model: says nothing of its other models."""

_KEY_REFUSED = frozenset((401, 402, 403, 407))
"""Our key is at fault, not the caller; and the answer may show a part of it."""
_TRANSIENT = frozenset((408, 425, 429))
_MAYBE_KEY = re.compile(r"\b(?:sk|pk|gsk|xai|key|AIza)[-_*A-Za-z0-9.]{8,}")


def is_callers_fault(status: int, route: Route) -> bool:
    """Whether another backend would say the same, so that the client shall see it.

    That a stored response is not there is the caller's affair; that a route is not, is not.
    """
    if not 400 <= status < 500 or status in _KEY_REFUSED or status in _TRANSIENT:
        return False
    return status not in NOT_THERE or route == "responses"


def failure_of(
    backend: str, status: int, message: str, after_s: int | None = None
) -> UpstreamError:
    """The error that a backend's answer makes, where it is not the caller's.

    Args:
        backend: its name.
        status: not 2xx.
        message: what the body says, clean.
        after_s: what its `Retry-After` says.
    """
    if status == 429:
        error = UpstreamError(f"backend {backend} limits us: {message}", status=503, code=LIMITED)
    elif status == 503 and after_s is not None:
        error = UpstreamError(f"backend {backend} is busy: {message}", status=503, code=BUSY)
    elif status in _KEY_REFUSED:
        what = f"backend {backend} refuses the gateway's key with {status}"
        return UpstreamError(what, code="upstream_key_refused")
    else:
        what = f"backend {backend} answers {status}" + (f": {message}" if message else "")
        is_late = status in (408, 504)
        code = "upstream_timeout" if is_late else "upstream_error"
        return UpstreamError(what, status=504 if is_late else 502, code=code)
    error.retry_after_s = after_s
    return error


def status_of(error: UpstreamError) -> Status:
    """How the attempt that it ended is recorded."""
    if error.code == LIMITED:
        return "rate_limited"
    return "timeout" if error.status == 504 else "error"


class _Refusal(msgspec.Struct):
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _Refused(msgspec.Struct):
    error: _Refusal | None = None


def refusal_of(backend: str, status: int, body: bytes) -> RequestError:
    """The error that a whole answer makes where the client has been promised a stream.

    Args:
        backend: its name.
        status: of the answer: the caller's fault, or 2xx.
        body: of the answer.
    """
    if status < 400:
        return UpstreamError(f"backend {backend} answers without a stream", code="upstream_garbage")
    try:
        said = msgspec.json.decode(body, type=_Refused).error
    except msgspec.DecodeError:
        said = None
    said = said or _Refusal()
    code = None if said.code is None else str(said.code)
    message = message_of(body) or f"backend {backend} answers {status}"
    error = RequestError(message, param=said.param, code=code)
    error.status = status
    error.type = said.type or error.type
    return error


def message_of(body: bytes) -> str:
    """What an error's body says, one line."""
    return error_message(body) or " ".join(body[:1000].decode("utf-8", "replace").split())


def clean(text: str, secrets: Iterable[str]) -> str:
    """A backend's words without what may be a key: some show parts of the one that they got."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return _MAYBE_KEY.sub("***", text)[:MAX_MESSAGE_LEN]


def retry_after(value: bytes) -> int | None:
    """Seconds that a `Retry-After` says (RFC 9110 10.2.3); None: nothing that can be read."""
    text = value.decode("latin-1").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    if seconds != seconds:
        return None
    return round(min(float(MAX_AFTER_S), max(0.0, seconds + 0.499)))
