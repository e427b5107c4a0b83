"""A server in a process of its own over an engine without a model, and what tests ask of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from safetensors.numpy import save_file

from tests.engine.byte_tokenizer import byte_backend
from tests.engine.fake_core import VOCAB_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

SERVE = """
import json
import os
import sys
from decimal import Decimal
from octavo.config import EngineConfig, ServerConfig, api_key_digest
from octavo.errors import OctavoError
from octavo.launch import serve
from octavo.observability.logs import configure_logs

configure_logs("info")
model, builder, options = sys.argv[1:]
options = json.loads(options)
if "price_per_device_hour" in options:
    options["price_per_device_hour"] = Decimal(options["price_per_device_hour"])
options["api_key_digests"] = tuple(map(api_key_digest, options.pop("api_keys", ())))
try:
    code = serve(
        EngineConfig(model=model),
        ServerConfig(served_model_names=("fake",), **options),
        builder="tests.engine.fake_core:" + builder,
    )
except OctavoError as error:
    print(type(error).__name__, error, file=sys.stderr)
    code = 1
is_told = "otlp_endpoint" in options or "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ
unwanted = {"torch"} if is_told else {"torch", "opentelemetry"}
print(not unwanted.isdisjoint(sys.modules), flush=True)
sys.exit(code)
"""


def write_model(folder: Path) -> str:
    """A folder with a tokenizer and one tensor: enough for everything but the engine."""
    config = {"architectures": ["FakeForCausalLM"], "vocab_size": VOCAB_SIZE, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    byte_backend().save(str(folder / "tokenizer.json"))
    save_file({"x": np.zeros(2, np.float32)}, folder / "model.safetensors")
    return str(folder)


class Server:
    """A server in a process of its own, with the log that it wrote so far."""

    def __init__(
        self,
        model: str,
        folder: Path,
        builder: str,
        options: dict[str, Any],
        core: dict[str, Any],
    ) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FAKE_ENGINE": json.dumps(core),
            "TMPDIR": str(folder),
        }
        self.popen = subprocess.Popen(
            [sys.executable, "-c", SERVE, model, builder, json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.log = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.log += line

    def wait_for(self, words: str, timeout_s: float = 20.0) -> str:
        """The rest of the log's line behind these words."""
        deadline = time.monotonic() + timeout_s
        while words not in self.log:
            assert time.monotonic() < deadline, f"no {words!r} in: {self.log}"
            assert self.popen.poll() is None, self.log
            time.sleep(0.01)
        return self.log.partition(words)[2].splitlines()[0].strip()

    def end(self) -> int:
        """Wait for the exit code; the process must not have imported torch, nor OpenTelemetry
        unless it was told to.
        """
        code = self.popen.wait(20)
        self._reader.join()
        assert self.popen.stdout is not None
        assert self.popen.stdout.read() == "False\n"
        return code

    def engine_pid(self) -> int:
        """The engine process."""
        [pid] = self._children("octavo-engine")
        return pid

    def worker_pids(self) -> list[int]:
        """The API servers, where there are several."""
        return self._children("octavo-api-server")

    def _children(self, name: str) -> list[int]:
        """The processes that this one started under a name and that live."""
        pid = self.popen.pid
        found = []
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):  # it has ended since
                continue
            if name.encode() in command:  # a dead one that was not collected has no command
                found.append(int(child))
        return found


@contextmanager
def serving(
    model: str,
    folder: Path,
    builder: str = "build",
    *,
    options: dict[str, Any] | None = None,
    **core: Any,
) -> Iterator[Server]:
    options = {"port": 0, "shutdown_timeout": 10.0, **(options or {})}
    server = Server(model, folder, builder, options, core)
    try:
        yield server
    finally:
        server.popen.kill()
        server.popen.wait()
        server._reader.join()
        for stream in (server.popen.stdout, server.popen.stderr):
            assert stream is not None
            stream.close()


def completion(max_tokens: int, **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": [5], "max_tokens": max_tokens, **fields}


class Stream(threading.Thread):
    """A streaming request in a thread; `lines` grows while it runs."""

    def __init__(self, url: str, max_tokens: int) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.error: Exception | None = None
        self._url = url
        self._body = completion(max_tokens, stream=True, ignore_eos=True)
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", f"{self._url}/completions", json=self._body) as response:
                self.lines += [line for line in response.iter_lines() if line]
        except httpx.HTTPError as error:
            self.error = error


def wait_until_running(url: str, num: int = 1) -> None:
    for _ in range(500):
        metrics = httpx.get(f"{url.removesuffix('/v1')}/metrics").text
        if f'vllm:num_requests_running{{engine="0",model_name="fake"}} {num}\n' in metrics:
            return
        time.sleep(0.01)
    raise AssertionError("the request does not run")


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    return error


def wait_until_healthy(base: str, timeout_s: float = 10.0) -> list[dict[str, Any]]:
    """Poll until `/health` is 200; the errors that came before."""
    errors: list[dict[str, Any]] = []
    deadline = time.monotonic() + timeout_s
    while (response := httpx.get(f"{base}/health")).status_code == 503:
        errors.append(error_of(response) | {"retry-after": response.headers.get("retry-after")})
        assert time.monotonic() < deadline, errors[-1]
        time.sleep(0.01)
    assert response.status_code == 200
    return errors
