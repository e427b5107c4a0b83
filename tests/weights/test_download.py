"""Downloads from a server that breaks off, ignores ranges, refuses, or sends something else."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from octavo.errors import DownloadError
from octavo.weights import download as module
from octavo.weights.download import RefusedError, download

if TYPE_CHECKING:
    from pathlib import Path

DATA = np.random.default_rng(1).bytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Recorder:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int | None, int]] = []
        self.advanced = 0

    def say(self, message: str) -> None:
        raise AssertionError(message)

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        self.begun.append((what, total, done))

    def advance(self, num_bytes: int) -> None:
        self.advanced += num_bytes


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)


@pytest.fixture
def url(server: Any) -> str:
    server.files["/files/model.bin"] = DATA
    return f"{server.url}/files/model.bin"


def test_whole_file_with_progress(url: str, tmp_path: Path) -> None:
    progress = Recorder()
    download(url, tmp_path / "new" / "model", SHA256, progress)
    assert (tmp_path / "new" / "model").read_bytes() == DATA
    assert progress.begun == [("model", len(DATA), 0)]
    assert progress.advanced == len(DATA)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_broken_connections_are_resumed(url: str, server: Any, tmp_path: Path) -> None:
    server.breaks = [100_000, 50_000, 70_000]
    progress = Recorder()
    download(url, tmp_path / "model", SHA256, progress)
    assert (tmp_path / "model").read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
        "bytes=220000-",
    ]
    assert progress.advanced == len(DATA)
    assert progress.begun[-1] == ("model", len(DATA), 220_000)


def test_a_later_call_resumes_what_an_earlier_one_left(
    url: str, server: Any, tmp_path: Path
) -> None:
    server.breaks = [123_456] + [0] * module.MAX_ATTEMPTS
    with pytest.raises(DownloadError, match=r"123456 bytes have come.*again to resume"):
        download(url, tmp_path / "model", SHA256, Recorder())
    assert (tmp_path / "model.partial").read_bytes() == DATA[:123_456]
    assert not (tmp_path / "model").exists()
    server.requests.clear()
    download(url, tmp_path / "model", SHA256, Recorder())
    assert server.requests == [("/files/model.bin", "bytes=123456-")]
    assert (tmp_path / "model").read_bytes() == DATA


def test_a_server_without_ranges_starts_again(url: str, server: Any, tmp_path: Path) -> None:
    server.ranges = False
    server.breaks = [100_000]
    download(url, tmp_path / "model", SHA256, Recorder())
    assert (tmp_path / "model").read_bytes() == DATA


def test_a_complete_partial_needs_no_bytes(url: str, tmp_path: Path) -> None:
    (tmp_path / "model.partial").write_bytes(DATA)
    progress = Recorder()
    download(url, tmp_path / "model", SHA256, progress)
    assert progress.advanced == 0
    assert (tmp_path / "model").read_bytes() == DATA


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * 400_000])
def test_a_wrong_checksum_deletes_and_says_so(left: bytes, url: str, tmp_path: Path) -> None:
    (tmp_path / "model.partial").write_bytes(left)
    with pytest.raises(DownloadError, match="wrong checksum, deleted what came"):
        download(url, tmp_path / "model", SHA256, Recorder())
    assert list(tmp_path.iterdir()) == []
    download(url, tmp_path / "model", SHA256, Recorder())
    assert (tmp_path / "model").read_bytes() == DATA


def test_busy_servers_are_asked_again(url: str, server: Any, tmp_path: Path) -> None:
    server.statuses = [503, 429, 500]
    download(url, tmp_path / "model", SHA256, Recorder())
    assert len(server.requests) == 4


def test_a_server_that_stays_busy(url: str, server: Any, tmp_path: Path) -> None:
    server.statuses = [503] * 50
    with pytest.raises(DownloadError, match="503 Service Unavailable"):
        download(url, tmp_path / "model", SHA256, Recorder())
    assert len(server.requests) == module.MAX_ATTEMPTS


@pytest.mark.parametrize("status", [401, 403])
def test_refusals_are_told_apart(status: int, url: str, server: Any, tmp_path: Path) -> None:
    server.statuses = [status]
    with pytest.raises(RefusedError, match=str(status)):
        download(url, tmp_path / "model", SHA256, Recorder())
    assert len(server.requests) == 1


def test_not_found_is_final(server: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="404 Not Found"):
        download(f"{server.url}/files/absent", tmp_path / "model", None, Recorder())
    assert len(server.requests) == 1


def test_nobody_listens(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/model"
    with pytest.raises(DownloadError, match="again to resume"):
        download(url, tmp_path / "model", None, Recorder())


def test_a_folder_that_cannot_be_written(url: str, tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    with pytest.raises(DownloadError, match="cannot be written"):
        download(url, tmp_path / "model", None, Recorder())
