"""Downloads over HTTP that resume, and checksums. Knows URLs and files, not models or packages."""

from __future__ import annotations

import hashlib
import ssl
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from octavo.errors import DownloadError
from octavo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

MAX_ATTEMPTS = 5
"""Connections in a row that may bring nothing before the download fails."""

CHUNK_BYTES = 1 << 20
RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
REFUSED_STATUS = frozenset({401, 403, 407})


class Progress(Protocol):
    """Whom a pull tells how it goes. Called from the thread that pulls."""

    def say(self, message: str) -> None:
        """One line about what happens."""

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        """A transfer or check of `total` bytes starts (None: not known), `done` of them done."""

    def advance(self, num_bytes: int) -> None:
        """So many more bytes of what began last are done."""


class Silent:
    """Progress that nobody sees."""

    def say(self, message: str) -> None:
        """Nothing."""

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        """Nothing."""

    def advance(self, num_bytes: int) -> None:
        """Nothing."""


class RefusedError(DownloadError):
    """The server wants credentials, or its certificate is not trusted, on this way of asking."""


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    if progress:
        progress.begin(f"checking {path.name}", path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            if progress:
                progress.advance(len(chunk))
    return digest.hexdigest()


def download(
    url: str, target: Path, sha256: str | None, progress: Progress, what: str | None = None
) -> None:
    """Fetch `url` into `target`, through `target` + `.partial`, which a later call resumes.

    Args:
        url: http or https.
        target: replaced in one step when everything has come and matches.
        sha256: expected, hexadecimal; None: the caller checks in another way.
        progress: told of every chunk.
        what: name of the transfer in messages; None: the file's.

    Raises:
        RefusedError: credentials or certificates; nothing was fetched.
        DownloadError: the network failed (what came is kept for the next call), or the checksum is
            wrong (what came is deleted).
    """
    what = what or target.name
    partial = target.with_name(target.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    idle_attempts = 0
    with _client() as client:
        while True:
            before = _size(partial)
            problem = _fetch_rest(client, url, partial, what, progress)
            if problem is None:
                break
            idle_attempts = 0 if _size(partial) > before else idle_attempts + 1
            if idle_attempts >= MAX_ATTEMPTS:
                raise DownloadError(
                    f"{what}: {problem}; {_size(partial)} bytes have come, run the command "
                    "again to resume"
                )
            time.sleep(min(0.2 * 2**idle_attempts, 5))
    if sha256 is not None:
        found = sha256_of(partial)
        if found != sha256:
            partial.unlink()
            raise DownloadError(
                f"{what}: wrong checksum, deleted what came (SHA-256 {found}, expected {sha256})"
            )
    partial.replace(target)


def _fetch_rest(
    client: httpx.Client, url: str, partial: Path, what: str, progress: Progress
) -> str | None:
    """Append what is missing of `partial`. None: complete. A string: why not, worth a retry."""
    import httpx

    have = _size(partial)
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        with client.stream("GET", url, headers=headers) as response:
            status = response.status_code
            if status == 416:
                # Nothing follows what we have: complete, or longer than what the server has. The
                # checksum tells; a wrong one deletes the file.
                return None
            if status in REFUSED_STATUS:
                raise RefusedError(f"{what}: the server answers {status} {response.reason_phrase}")
            if status in RETRY_STATUS:
                return f"the server answers {status} {response.reason_phrase}"
            if status not in (200, 206):
                raise DownloadError(f"{what}: the server answers {status} {response.reason_phrase}")
            # a server that knows no ranges, or answers with another one, starts from byte 0
            resumes = status == 206 and response.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            )
            if status == 206 and not resumes:
                partial.unlink(missing_ok=True)
                return "the server answers with another range than asked for"
            done = have if resumes else 0
            length = response.headers.get("Content-Length")
            total = done + int(length) if length and length.isdigit() else None
            progress.begin(what, total, done)
            with partial.open("ab" if resumes else "wb") as file:
                # as they come: a chunk size would hold bytes back that a broken connection loses
                for chunk in response.iter_raw():
                    file.write(chunk)
                    done += len(chunk)
                    progress.advance(len(chunk))
            if total is not None and done < total:
                return f"the connection ended {total - done} bytes early"
            return None
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise RefusedError(f"{what}: {error}") from error
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DownloadError(f"{what}: {error}") from error
    except OSError as error:
        raise DownloadError(f"{what}: cannot be written: {error.strerror or error}") from error


@contextmanager
def _client() -> Iterator[httpx.Client]:
    """A client that honours the usual proxy and certificate settings of the machine."""
    import certifi
    import httpx

    # The system's certificates (or what SSL_CERT_FILE names) where there are any, and the public
    # ones of certifi, as pip has them.
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    headers = {"User-Agent": f"octavo/{__version__}", "Accept-Encoding": "identity"}
    timeout = httpx.Timeout(60, connect=20)
    try:
        client = httpx.Client(
            verify=context, headers=headers, timeout=timeout, follow_redirects=True
        )
    except (ImportError, ValueError) as error:  # a proxy setting that httpx cannot serve
        raise DownloadError(f"the proxy settings cannot be used: {error}") from error
    with client:
        yield client


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
