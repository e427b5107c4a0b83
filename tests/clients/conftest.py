"""What tests of other people's clients share: servers that live as long as the folder's tests.

`octavo` is `octavo serve` with SmolLM2, as its own process. `scripted` is the same application
around an engine that answers what a test tells it, on a real socket. No test reaches the network.
"""

from __future__ import annotations

import gc
import math
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.conftest import running_servers
from tests.server.fake_engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from octavo.types import Delta, SamplingParams

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
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@dataclass(frozen=True)
class Served:
    """Where a model is served, and its name there."""

    url: str
    model: str

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


class ScriptedEngine(FakeEngine):
    """Says `texts`, one a request, in small pieces; the last one again and again."""

    texts: list[str] = [CALL]

    async def _deltas(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Delta]:
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        self.pieces = [text[i : i + 5] for i in range(0, len(text), 5)]
        async for delta in super()._deltas(prompt, params):
            yield delta


@dataclass(frozen=True)
class Scripted(Served):
    """A server whose answers a test decides."""

    engine: ScriptedEngine = field(repr=False)

    def says(self, *texts: str) -> None:
        """Answer the next requests with these texts, and from then on with the last one."""
        self.engine.texts = list(texts)

    @property
    def is_bound(self) -> bool:
        """Whether every answer had to have a structure."""
        return all(params.structured_outputs is not None for params in self.params)

    @property
    def params(self) -> list[SamplingParams]:
        """What was asked of the engine, in order."""
        return [params for _, params in self.engine.requests.values()]


@pytest.fixture(scope="session", autouse=True)
def _quiet_clients() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        import huggingface_hub.constants

        # It reads the environment when it is imported, which other tests may have done already.
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Some clients leave event loops to the garbage collector: let it find them here."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names of other hosts are not looked up, and a test that tries fails."""
    tried: list[str] = []
    lookup = socket.getaddrinfo
    # Libraries that other tests used leave threads behind, which are not this test's.
    strangers = set(threading.enumerate()) - {threading.current_thread()}

    def local_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "127.0.0.1", "localhost", "::1"):
            if threading.current_thread() not in strangers:
                tried.append(name)
            raise socket.gaierror(f"{name} is not on this machine")
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", local_only)
    yield
    assert not tried, f"looked for {tried}"


@contextmanager
def _serving(model: Path, name: str, log: Path, *flags: str) -> Iterator[Served]:
    """`octavo serve` as its own process, which must end as it is told to."""
    command = [sys.executable, "-m", "octavo.cli.main", "serve", str(model), "--port", "0"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--served-model-name", name, *flags], stderr=file, stdout=file
        )
    try:
        deadline = time.monotonic() + 120
        while "ready at " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        url = log.read_text().partition("ready at ")[2].split()[0]
        yield Served(url.removesuffix("/v1"), name)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()


@pytest.fixture(scope="package")
def octavo(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """SmolLM2, which can be made to call tools but was not taught to."""
    log = tmp_path_factory.mktemp("octavo") / "log"
    flags = "--tool-call-parser hermes --kv-cache-memory 256MiB --max-model-len 2048"
    with _serving(smollm2_path, "smollm2", log, *flags.split()) as served:
        yield served


@pytest.fixture(scope="package")
def embedder(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """all-MiniLM-L6-v2, whose vectors have 384 dimensions and the length 1."""
    log = tmp_path_factory.mktemp("embedder") / "log"
    with _serving(minilm_path, "minilm", log) as served:
        yield served


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two vectors as the embedder's."""
    assert len(a) == len(b) == 384
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-4) for vector in (a, b))
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="package")
def _scripted() -> Iterator[Scripted]:
    engine = ScriptedEngine()
    with running_servers() as start:
        server = start(engine=engine, tool_call_parser="hermes")
        yield Scripted(server.url, "fake", engine)


@pytest.fixture
def scripted(_scripted: Scripted) -> Scripted:
    """Says a tool call, or what `says` is told; `params` are those of this test."""
    _scripted.engine.requests.clear()
    _scripted.says(CALL)
    return _scripted
