"""A PostgreSQL server of Debian's or any other's binaries, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from uuid import uuid4

from octavo.ledger.store import open_ledger


def find_binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl`, or None."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


class PostgresServer:
    """Runs as an unprivileged user, which it insists on, and listens on a Unix socket alone."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="octavo-pg-", dir="/tmp"))  # a short path
        self._ledger = ""
        self._as: dict[str, str] = {}
        if os.geteuid() == 0:
            self._as = {"user": "postgres", "group": "postgres"}
            shutil.chown(self._folder, **self._as)
        self._run(
            "initdb", "-D", str(self._data), "-U", "octavo", "-A", "trust", "--no-sync",
            "-E", "UTF8", "--locale=C",
        )  # fmt: skip
        self.start()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def start(self) -> None:
        # Processes are killed here, never the machine: its disk need not be waited for.
        options = f"-c listen_addresses='' -k {self._folder} -c fsync=off -c shared_buffers=16MB"
        self._run(
            "pg_ctl", "-D", str(self._data), "-w", "-l", str(self._folder / "log"), "-o", options,
            "start",
        )  # fmt: skip

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    def new_database(self) -> str:
        """The URL of an empty database."""
        return self._create("template0")

    def new_ledger(self) -> str:
        """The URL of a ledger without entries."""
        if not self._ledger:
            url = self._create("template0")
            open_ledger(url).close()
            self._ledger = url.partition("@/")[2].partition("?")[0]
        return self._create(self._ledger)

    def _create(self, template: str) -> str:
        import psycopg

        name = f"ledger_{uuid4().hex[:12]}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self._url(name)

    def remove(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-W", "-m", "immediate", "stop")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _url(self, database: str) -> str:
        return f"postgresql://octavo@/{database}?host={self._folder}"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, *arguments],
            cwd="/",
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as,  # type: ignore[call-overload]
        )
