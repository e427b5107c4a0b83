"""`/v1/files`: input of batches, and their output."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from starlette.responses import FileResponse

from octavo.errors import InvalidRequestError, NotFoundError
from octavo.protocol.files import FileDeleted, FileList
from octavo.server.auth import tenant_of
from octavo.server.context import context_of
from octavo.server.http import json_response
from octavo.server.queries import Query
from octavo.server.state.files import drop
from octavo.server.uploads import receive_upload

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from octavo.protocol.files import FileObject

MAX_UPLOAD_BYTES = 512 * 1024**2
"""Of a form with a file (OpenAI's bound of files)."""

MAX_PAGE = 10_000


class FileNotFoundHereError(NotFoundError):
    """No such file, or not of this caller."""

    type = "invalid_request_error"

    def __init__(self, file_id: str, *, param: str | None = None) -> None:
        super().__init__(f"No such file: {file_id[:100]!r}", param=param, code="file_not_found")


async def create_file(request: Request) -> Response:
    """Keep a file: a form with `file`, and with `purpose`, which must be `batch`.

    Raises:
        RequestError: it is no such form, too large, or there is no room.
    """
    files = context_of(request).state.files
    upload = await receive_upload(request, files, max_bytes=MAX_UPLOAD_BYTES)
    try:
        for name in upload.fields:
            if name != "purpose":
                raise InvalidRequestError(
                    f"{name} is not supported by this server: leave it out", param=name
                )
        if upload.fields.get("purpose") != "batch":
            raise InvalidRequestError("purpose must be batch", param="purpose")
        kept = await files.keep(
            upload.path,
            tenant_of(request.scope),
            filename=upload.filename,
            purpose="batch",
            created_at=int(time.time()),
        )
    finally:
        await drop(upload.path)
    return json_response(kept)


async def list_files(request: Request) -> Response:
    """The caller's files, the newest first unless told otherwise.

    Raises:
        RequestError: the page is not there.
    """
    query = Query(request, "purpose", "limit", "order", "after")
    limit = query.number("limit", least=1, most=MAX_PAGE) or MAX_PAGE
    page = await context_of(request).state.files.page(
        tenant_of(request.scope),
        purpose=query.text("purpose"),
        after=query.text("after"),
        limit=limit + 1,
        is_rising=query.choice("order", "desc", "asc") == "asc",
    )
    if page is None:
        raise InvalidRequestError("after names no file", param="after")
    shown = page[:limit]
    return json_response(
        FileList(
            data=shown,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=len(page) > limit,
        )
    )


async def retrieve_file(request: Request) -> Response:
    """What is known of a file.

    Raises:
        RequestError: it is not there.
    """
    Query(request)
    return json_response(await _file(request))


async def delete_file(request: Request) -> Response:
    """Forget a file that no open batch reads.

    Raises:
        RequestError: it is not there, or a batch reads it.
    """
    Query(request)
    state = context_of(request).state
    file = await _file(request)
    if await state.batches.needs_file(file.id):
        raise InvalidRequestError(
            "A batch that is not over reads this file: cancel the batch first", param="file_id"
        )
    if not await state.files.delete(file.id, tenant_of(request.scope)):
        raise FileNotFoundHereError(file.id)
    return json_response(FileDeleted(id=file.id))


async def file_content(request: Request) -> Response:
    """A file's bytes.

    Raises:
        RequestError: it is not there.
    """
    Query(request)
    file = await _file(request)
    path = context_of(request).state.files.path(file.id)
    return FileResponse(path, media_type="application/octet-stream")


async def _file(request: Request) -> FileObject:
    file_id: str = request.path_params["file_id"]
    file = await context_of(request).state.files.get(file_id, tenant_of(request.scope))
    if file is None:
        raise FileNotFoundHereError(file_id)
    return file
