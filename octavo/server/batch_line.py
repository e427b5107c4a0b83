"""Runs one line of a batch: an HTTP request to the application, in this process or elsewhere.

A server that is away or full is no fault of a line: it is asked again.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from octavo.errors import OctavoError
from octavo.protocol.batch_lines import LineAnswer, LineError, ResultLine

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from octavo.protocol.batch_lines import BatchLine

AWAY_STATUSES = frozenset({429, 502, 503, 504})
"""What a server answers that may do it later."""

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0


class ServerAwayError(OctavoError):
    """The server did not take a request for as long as its caller had patience."""


def refused_line(line: int, message: str, code: str = "invalid_request") -> ResultLine:
    """The result of a line that is no request; its number is all that it is known by."""
    return ResultLine(id=new_result_id(), custom_id=None, error=LineError(code, message, line))


async def run_line(
    client: httpx.AsyncClient,
    line: BatchLine,
    *,
    patience_s: float,
    extra: Mapping[str, Any] | None = None,
) -> ResultLine:
    """Ask, and ask again while the server is away.

    Args:
        client: of the application or the server; line's URLs are joined to its base.
        line: the request.
        patience_s: how long the server may be away.
        extra: fields of the body, where the line has none of that name.

    Raises:
        ServerAwayError: it was away for longer.
    """
    import httpx

    content = msgspec.json.encode({**(extra or {}), **line.body})
    headers = {"Content-Type": "application/json"}
    give_up_at, pause = time.monotonic() + patience_s, FIRST_PAUSE_S
    while True:
        wait_s = 0.0
        try:
            response = await client.post(line.url, content=content, headers=headers)
        except httpx.TransportError as exc:
            reason = f"{type(exc).__name__}: {exc}"
        else:
            if response.status_code not in AWAY_STATUSES:
                return _result(line, response)
            reason = f"status {response.status_code}: {response.text[:200]}"
            announced = response.headers.get("retry-after", "")
            wait_s = float(announced) if announced.isdecimal() else 0.0
        if time.monotonic() >= give_up_at:
            raise ServerAwayError(f"the server takes no requests ({reason})")
        wait_s = min(max(wait_s, pause * random.uniform(0.5, 1.0)), LONGEST_PAUSE_S)
        await asyncio.sleep(min(wait_s, max(0.0, give_up_at - time.monotonic())))
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _result(line: BatchLine, response: httpx.Response) -> ResultLine:
    body: msgspec.Raw | dict[str, Any] = msgspec.Raw(response.content)
    try:
        msgspec.json.decode(response.content)
        # One line of a file: JSON texts may have breaks between values, and ours have none.
        if b"\n" in response.content:
            body = msgspec.Raw(msgspec.json.format(response.content, indent=-1))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = {"error": {"message": response.text[:1000], "type": "server_error"}}
    request_id = response.headers.get("x-request-id", "")
    return ResultLine(
        id=new_result_id(),
        custom_id=line.custom_id,
        response=LineAnswer(response.status_code, request_id, body),
    )


def new_result_id() -> str:
    """A new id of a result."""
    return f"batch_req_{uuid4().hex}"
