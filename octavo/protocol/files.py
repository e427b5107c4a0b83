"""Wire types of `/v1/files`.

Source: https://platform.openai.com/docs/api-reference/files
"""

from __future__ import annotations

import msgspec


class FileObject(msgspec.Struct, kw_only=True):
    """A file that the server keeps. `purpose` is `batch`, or `batch_output` for results."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str = "processed"


class FileList(msgspec.Struct, kw_only=True):
    """One page of files."""

    object: str = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(msgspec.Struct, kw_only=True):
    """What deleting answers."""

    id: str
    object: str = "file"
    deleted: bool = True
