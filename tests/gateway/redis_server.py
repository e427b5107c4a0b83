"""Debian's Redis on a Unix socket, for tests: to be killed and started again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import redis

BINARY = shutil.which("redis-server")


class RedisServer:
    """Keeps nothing on disk: after `kill` and `start` it is empty."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="octavo-redis-", dir="/tmp"))  # a short path
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None
        self.socket = self._folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.start()

    def start(self) -> None:
        assert BINARY is not None
        self._process = subprocess.Popen(
            [
                BINARY, "--port", "0", "--unixsocket", str(self.socket), "--save", "",
                "--appendonly", "no", "--dir", str(self._folder), "--loglevel", "warning",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while self._cli("ping") != "PONG":
            assert time.monotonic() < deadline, "redis-server does not start"
            time.sleep(0.01)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.socket.unlink(missing_ok=True)

    def freeze(self) -> None:
        """It listens and does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        assert self._cli("flushall") == "OK"

    def remove(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def command(self, *words: str) -> list[str]:
        return self._cli(*words).splitlines()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        if self._client is not None:
            self._client.close()
            self._client = None
        self._process.send_signal(number)
        self._process.wait(10)
        self._process = None

    def _cli(self, *words: str) -> str:
        import redis

        if self._client is None:
            self._client = redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)
        try:
            answer = self._client.execute_command(*words)
        except redis.RedisError:
            return ""
        if answer is True:
            return "PONG" if words == ("ping",) else "OK"
        return "\n".join(map(str, answer)) if isinstance(answer, list) else str(answer)
