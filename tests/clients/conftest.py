"""What tests of other people's clients share: servers that live as long as the folder's tests.

`octavo` is `octavo serve` with SmolLM2, as its own process. `scripted` is the same application
around an engine that answers what a test tells it, on a real socket. No test reaches the network.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.conftest import RunningServer, running_servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Read when the clients are imported, which their tests do when they run.
QUIET = {
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "NO_PROXY": "127.0.0.1",
}

USER: dict[str, Any] = {"role": "user", "content": "What is the weather in Oslo?"}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@dataclass(frozen=True)
class Served:
    """Where a model is served, and its name there."""

    url: str
    model: str

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@dataclass
class Scripted(Served):
    """A server whose answers a test decides."""

    server: RunningServer = field(repr=False)

    def says(self, *texts: str, end: str = "stop") -> None:
        """Answer the next requests with these texts, the last one from then on, in small pieces."""
        self.server.engine.script = [
            [text[i : i + 5] for i in range(0, len(text), 5)] for text in texts
        ]
        self.server.engine.pieces_end = end


@pytest.fixture(scope="session", autouse=True)
def _quiet_clients() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names of other hosts are not looked up, and a test that tries fails."""
    tried: list[str] = []
    lookup = socket.getaddrinfo

    def local_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "127.0.0.1", "localhost", "::1"):
            tried.append(name)
            raise socket.gaierror(f"{name} is not on this machine")
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", local_only)
    yield
    assert not tried, f"looked for {tried}"


@pytest.fixture(scope="session")
def octavo(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """SmolLM2, which can be made to call tools but was not taught to."""
    log = tmp_path_factory.mktemp("octavo") / "log"
    flags = "--port 0 --tool-call-parser hermes --kv-cache-memory 256MiB --max-model-len 2048"
    command = [sys.executable, "-m", "octavo.cli.main", "serve", str(smollm2_path), *flags.split()]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--served-model-name", "smollm2"], stderr=file, stdout=file, env=os.environ
        )
    try:
        deadline = time.monotonic() + 60
        while "ready at " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        url = log.read_text().partition("ready at ")[2].split()[0]
        yield Served(url.removesuffix("/v1"), "smollm2")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()


@pytest.fixture(scope="session")
def _scripted_server() -> Iterator[RunningServer]:
    with running_servers() as start:
        yield start(tool_call_parser="hermes")


@pytest.fixture
def scripted(_scripted_server: RunningServer) -> Scripted:
    """Answers a tool call, or what `says` is told, as the model's text."""
    server = _scripted_server
    for record in (server.engine.requests, server.engine.finished, server.engine.aborted):
        record.clear()
    scripted = Scripted(server.url, "fake", server)
    scripted.says(CALL)
    return scripted
