"""Lines of batches: requests in the input file, results in the output file.

Source: https://platform.openai.com/docs/api-reference/batch/request-input
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.decode import decode

BATCH_URLS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
)
"""Routes that lines may ask."""

BatchURL = Literal[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
]

MAX_CUSTOM_ID_LEN = 512


class BatchLine(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One request. Results need not come in the order of the requests: `custom_id` joins them."""

    custom_id: str
    method: Literal["POST"] = "POST"
    url: BatchURL
    body: dict[str, Any]


class LineAnswer(msgspec.Struct):
    """What the route answered, an error's body included."""

    status_code: int
    request_id: str
    body: msgspec.Raw | dict[str, Any]


class LineError(msgspec.Struct, omit_defaults=True):
    """Why a line was not asked; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None


class ResultLine(msgspec.Struct, kw_only=True):
    """One result; either `response` or `error` is there."""

    id: str
    custom_id: str | None
    response: LineAnswer | None = None
    error: LineError | None = None

    @property
    def is_failure(self) -> bool:
        """Whether the request was refused or failed."""
        return self.response is None or self.response.status_code != 200


class WrittenLine(msgspec.Struct):
    """What is asked of a result that was written before."""

    id: str
    custom_id: str | None = None
    error: LineError | None = None


def read_line(data: bytes) -> BatchLine:
    """A line as a request.

    Raises:
        InvalidRequestError: it is none, or asks for what batches do not do.
    """
    try:
        line = decode(data, BatchLine)
    except InvalidRequestError as exc:
        message = exc.message.replace("The request body", "The line")
        raise InvalidRequestError(message, param=exc.param) from None
    if not 0 < len(line.custom_id) <= MAX_CUSTOM_ID_LEN:
        raise InvalidRequestError(
            f"custom_id must have 1 to {MAX_CUSTOM_ID_LEN} characters", param="custom_id"
        )
    for name in ("stream", "background"):
        if line.body.get(name):
            raise InvalidRequestError(
                f"body.{name} is not available in batches: leave it out", param=f"body.{name}"
            )
    return line
