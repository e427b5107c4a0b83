"""The fields of `/v1/batches`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.server.probes import Table, changes, refused

if TYPE_CHECKING:
    from tests.server.conftest import RunningServer

_FILE = "file-of-the-probe"


def _keep_file(server: RunningServer) -> None:
    """A file with nothing in it: batches of it fail at once, and run nothing."""
    files = server.app.context.state.files

    async def keep() -> None:
        scratch = files.scratch("probe")
        scratch.touch()
        await files.keep(scratch, "", filename="a", purpose="batch", created_at=1, file_id=_FILE)

    asyncio.run(keep())


TABLE = Table(
    path="/v1/batches",
    body={
        "input_file_id": _FILE,
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    },
    probes={
        "input_file_id": refused({"input_file_id": "file-1"}, status=404),
        "endpoint": changes({"endpoint": "/v1/chat/completions"}),
        "completion_window": changes({"completion_window": "2h"}),
        "metadata": changes({"metadata": {"a": "b"}}),
        "output_expires_after": refused({"output_expires_after": {"seconds": 3600}}),
    },
    prepare=_keep_file,
)
