"""SmolLM2 behind the real server: what clients see when the engine fails, and when it is back.

Run with `-s` for the figures.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from octavo.launch import build_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from octavo.config import EngineConfig
    from octavo.types import StepPlan, StepResult

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

ROOT = Path(__file__).parents[1]
WATCHDOG_S = 5.0

SERVE = """
import sys
from octavo.config import EngineConfig, ServerConfig
from octavo.launch import serve
from octavo.observability.logs import configure_logs

configure_logs("info")
engine = EngineConfig(model=sys.argv[1], max_model_len=1024, kv_cache_memory=2**28)
server = ServerConfig(port=0, served_model_names=("m",), watchdog_timeout=float(sys.argv[2]))
sys.exit(serve(engine, server, builder="tests.test_liveness:build"))
"""


def build(config: EngineConfig) -> Any:
    """The real engine. A file named by $PLANT says what its next step does, and is removed."""
    built = build_engine(config)
    submit = built.executor.submit

    def planted(plan: StepPlan) -> Future[StepResult]:
        try:
            plant = Path(os.environ["PLANT"])
            what = plant.read_text()
            plant.unlink()
        except FileNotFoundError:
            return submit(plan)
        if what == "hang":
            time.sleep(1000)
        raise RuntimeError("planted in a step")

    built.executor.submit = planted  # type: ignore[method-assign]
    return built


class Server:
    def __init__(self, popen: subprocess.Popen[str], url: str, plant: Path) -> None:
        self.popen = popen
        self.url = url
        self.plant = plant

    def engine_pid(self) -> int:
        pid = self.popen.pid
        [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def fail(self, how: str) -> None:
        if how == "kill":
            os.kill(self.engine_pid(), signal.SIGKILL)
            return
        new = self.plant.with_suffix(".new")
        new.write_text(how)
        new.rename(self.plant)

    def num_restarts(self) -> float:
        name = "octavo:engine_restarts_total"
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        [line] = [line for line in lines if line.startswith(name)]
        return float(line.split()[-1])

    def post(self, max_tokens: int, *, stream: bool = False) -> Client:
        return Client(self.url, max_tokens, stream)


class Client(threading.Thread):
    """One request; what came of it, and how long after `begin` its end came."""

    def __init__(self, url: str, max_tokens: int, stream: bool) -> None:
        super().__init__()
        self._url = url
        self._body = {
            "model": "m",
            "messages": [{"role": "user", "content": "Tell me a story of a ship."}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": stream,
        }
        self.lines: list[str] = []
        self.status = 0
        self.headers: httpx.Headers = httpx.Headers()
        self.ended_at = 0.0
        self.start()

    def run(self) -> None:
        url = f"{self._url}/v1/chat/completions"
        with httpx.stream("POST", url, json=self._body, timeout=60) as response:
            self.status, self.headers = response.status_code, response.headers
            for line in response.iter_lines():
                if line:
                    self.lines.append(line)
        self.ended_at = time.monotonic()

    def error(self) -> dict[str, Any]:
        """The error that ended it: the body, or the last event before the end of a stream."""
        text = self.lines[-2].removeprefix("data: ") if self.status == 200 else self.lines[0]
        error: dict[str, Any] = json.loads(text)["error"]
        return error


@pytest.fixture(scope="module")
def server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("liveness")
    with started(smollm2_path, folder) as running:
        yield running


@contextmanager
def started(model: Path, folder: Path) -> Iterator[Server]:
    plant = folder / "plant"
    log = (folder / "log").open("w+")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PLANT": str(plant)}
    popen = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(model), str(WATCHDOG_S)],
        stderr=log,
        text=True,
        env=environment,
    )
    try:
        deadline = time.monotonic() + 60
        while "ready at " not in (text := (folder / "log").read_text()):
            assert time.monotonic() < deadline, text
            assert popen.poll() is None, text
            time.sleep(0.02)
        url = text.partition("ready at ")[2].split()[0].removesuffix("/v1")
        yield Server(popen, url, plant)
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(20) == 0
    finally:
        popen.kill()
        popen.wait()
        log.close()


@pytest.mark.parametrize("how", ["raise", "kill", "hang"])
def test_what_clients_see(server: Server, how: str) -> None:
    num_restarts = server.num_restarts()
    whole = server.post(900)
    stream = server.post(900, stream=True)
    deadline = time.monotonic() + 30
    while len(stream.lines) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    failed_at = time.monotonic()
    server.fail(how)
    for client in (whole, stream):
        client.join()
    during = None if how == "raise" else server.post(5)
    while httpx.get(f"{server.url}/health").status_code != 200:
        assert time.monotonic() - failed_at < 60
        time.sleep(0.02)
    healthy_at = time.monotonic()
    after = server.post(5)
    after.join()
    back_at = after.ended_at

    told_s = max(client.ended_at for client in (whole, stream)) - failed_at
    print(
        f"\n{how}: non-streaming {whole.status} {whole.error()['code']}; "
        f"streaming {stream.status}, {len(stream.lines) - 2} events, "
        f"then error {stream.error()['code']}, [DONE]; "
        f"told after {told_s:.2f} s; healthy after {healthy_at - failed_at:.2f} s; "
        f"5 tokens served after {back_at - failed_at:.2f} s"
    )
    assert whole.status == 500
    assert stream.status == 200
    assert stream.lines[-1] == "data: [DONE]"
    for client in (whole, stream):
        assert client.error()["code"] == "engine_error"
        assert client.error()["type"] == "server_error"
    assert told_s < (WATCHDOG_S if how == "hang" else 0) + 1.5
    if during is not None:
        during.join()
        assert during.status == 503
        assert during.error()["code"] == "engine_restarting"
        assert int(during.headers["retry-after"]) >= 1
    assert after.status == 200
    assert json.loads(after.lines[0])["usage"]["completion_tokens"] == 5
    assert server.num_restarts() - num_restarts == (how != "raise")
