"""The private folder of a server's life: sockets and state, gone with it.

A server that was killed cannot remove its own. The next one does: each folder has a file that its
owner keeps locked for as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.config import ServerConfig

PREFIX = "octavo-run-"
LOCK = "lock"


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A new folder with mode 0700; removed at the end, with all that is in it."""
    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def with_state_dir(config: ServerConfig, run: Path) -> ServerConfig:
    """The configuration with a `state_dir` that exists and only this user may enter.

    Raises:
        ConfigError: the one that it names cannot be had.
    """
    folder = run / "state" if config.state_dir is None else Path(config.state_dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "no permission to write there")
    except OSError as error:
        raise ConfigError(
            f"cannot keep state in {folder} (--state-dir): {error.strerror}"
        ) from None
    return msgspec.structs.replace(config, state_dir=str(folder.resolve()))


def _sweep(parent: Path) -> None:
    """Remove the folders of servers that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or being made or removed just now
            lock = os.open(folder / LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
