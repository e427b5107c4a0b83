"""One server process's access to what outlives a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.server.response_runs import BackgroundRuns
from octavo.server.state.batches import SCHEMA as BATCHES_SCHEMA
from octavo.server.state.batches import BatchStore
from octavo.server.state.database import StateFolder
from octavo.server.state.files import SCHEMA as FILES_SCHEMA
from octavo.server.state.files import FileStore
from octavo.server.state.responses import SCHEMA as RESPONSES_SCHEMA
from octavo.server.state.responses import ResponseStore

if TYPE_CHECKING:
    from octavo.server.lifecycle import Lifecycle


class ServerState:
    """See the module. Nothing is touched before the first use.

    Args:
        folder: `ServerConfig.state_dir`.
        lifecycle: the server's.

    Attributes:
        responses, files, batches: stored ones.
        runs: responses in the background of this process.
    """

    def __init__(self, folder: str | None, lifecycle: Lifecycle) -> None:
        self.folder = StateFolder(folder, RESPONSES_SCHEMA + FILES_SCHEMA + BATCHES_SCHEMA)
        self.responses = ResponseStore(self.folder)
        self.files = FileStore(self.folder)
        self.batches = BatchStore(self.folder)
        self.runs = BackgroundRuns(lifecycle)
