"""Wire types of `/v1/batches`.

Source: https://platform.openai.com/docs/api-reference/batch
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.batch_lines import BatchURL
from octavo.protocol.metadata import Metadata, check_metadata
from octavo.protocol.responses import InputTokensDetails, OutputTokensDetails

MAX_WINDOW_H = 168

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


class BatchRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request for a batch. `completion_window` is whole hours, up to a week: `24h`."""

    input_file_id: str
    endpoint: BatchURL
    completion_window: str
    metadata: Metadata | None = None
    output_expires_after: dict[str, Any] | None = None

    def check(self) -> None:
        """Refuse what is not served.

        Raises:
            InvalidRequestError: names the field.
        """
        check_metadata(self.metadata)
        match = re.fullmatch(r"([0-9]{1,3})h", self.completion_window)
        if match is None or not 1 <= int(match[1]) <= MAX_WINDOW_H:
            raise InvalidRequestError(
                f"completion_window must be 1h to {MAX_WINDOW_H}h, such as 24h",
                param="completion_window",
            )
        if self.output_expires_after is not None:
            raise InvalidRequestError(
                "output_expires_after is not supported by this server: leave it out, and delete "
                "the files when they are of no more use",
                param="output_expires_after",
            )

    @property
    def window_s(self) -> int:
        """How long the batch may take, seconds."""
        return int(self.completion_window[:-1]) * 3600


class BatchError(msgspec.Struct, kw_only=True):
    """What is wrong with the input file; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct, kw_only=True):
    """The first errors of the input file."""

    object: str = "list"
    data: list[BatchError]


class RequestCounts(msgspec.Struct):
    """How far a batch is."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchUsage(msgspec.Struct):
    """Tokens of all requests that were answered."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: InputTokensDetails = msgspec.field(default_factory=InputTokensDetails)
    output_tokens_details: OutputTokensDetails = msgspec.field(default_factory=OutputTokensDetails)


class Batch(msgspec.Struct, kw_only=True):
    """A batch, at whatever point it is. Times are seconds since the epoch."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = msgspec.field(default_factory=RequestCounts)
    usage: BatchUsage | None = None
    metadata: Metadata | None = None


class BatchList(msgspec.Struct, kw_only=True):
    """One page of batches, the newest first."""

    object: str = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
