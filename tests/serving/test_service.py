from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from octavo.config import ServerConfig
from octavo.errors import ConfigError
from octavo.serving.workers import MAX_FAILURES
from tests.serving.server_process import (
    Server,
    Stream,
    completion,
    error_of,
    serving,
    wait_until_healthy,
    wait_until_running,
    write_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

TWO = {"api_server_count": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


def wait_for(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def samples(base: str, client: httpx.Client | None = None) -> dict[str, float]:
    """What `/metrics` tells, by name and labels."""
    response = httpx.get(f"{base}/metrics") if client is None else client.get(f"{base}/metrics")
    lines = [line for line in response.text.splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def end(server: Server) -> None:
    server.popen.send_signal(signal.SIGTERM)
    assert server.end() == 0
    assert "Traceback" not in server.log


def test_a_killed_worker_takes_only_its_own_connections_along(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path, options=TWO, step_s=0.01) as server:
        url = server.wait_for("ready at ")
        base = url.removesuffix("/v1")
        engine, workers = server.engine_pid(), server.worker_pids()
        assert len(workers) == 2
        streams = [Stream(url, 4000) for _ in range(8)]
        wait_until_running(url, 8)
        assert httpx.get(f"{base}/load").json() == {"server_load": 8}
        os.kill(workers[0], signal.SIGKILL)
        running = 'vllm:num_requests_running{engine="0",model_name="fake"}'
        wait_for(lambda: samples(base)[running] < 8)  # the engine forgot those of the dead one
        num_left = int(samples(base)[running])
        assert 0 < num_left < 8
        assert httpx.get(f"{base}/load").json() == {"server_load": num_left}
        wait_for(lambda: sum(stream.is_alive() for stream in streams) == num_left)
        assert sum(stream.error is not None for stream in streams) == 8 - num_left
        wait_for(lambda: len(server.worker_pids()) == 2)
        assert server.engine_pid() == engine
        found = samples(base)
        assert found['octavo:api_server_restarts_total{engine="0",model_name="fake"}'] == 1
        assert found['octavo:engine_restarts_total{engine="0",model_name="fake"}'] == 0
        server.popen.send_signal(signal.SIGTERM)
        server.wait_for("stopping")
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
        for stream in streams:
            stream.join()
        assert sum(stream.error is None for stream in streams) == num_left
        ended = [stream.lines[-1] for stream in streams if stream.error is None]
        assert ended == ["data: [DONE]"] * num_left
    assert (
        "ended with signal 9 (SIGKILL); its connections are lost, and it is started" in server.log
    )


def test_each_worker_tells_of_all(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path, options=TWO) as server:
        url = server.wait_for("ready at ")
        base = url.removesuffix("/v1")
        with httpx.Client() as first, httpx.Client() as second:
            clients = (first, second)  # both connections stay, so that each worker has one
            for client, num in ((first, 3), (second, 5)):
                for _ in range(num):
                    body = completion(7)
                    assert client.post(f"{url}/completions", json=body).status_code == 200
            # A worker may count a request only after its answer has gone out.
            requests = 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"}'
            wait_for(lambda: samples(base, first).get(requests) == 8)
            told = [samples(base, client) for client in clients]
            assert told[0] == told[1]
            label = '{engine="0",model_name="fake"}'
            assert told[0][f"vllm:time_to_first_token_seconds_count{label}"] == 8
            assert told[0][f"vllm:e2e_request_latency_seconds_count{label}"] == 8
            # Fewer on a busy machine, where one delta may have a request's first tokens together.
            assert 0 < told[0][f"vllm:inter_token_latency_seconds_count{label}"] <= 8 * 6
            assert told[0][f"vllm:generation_tokens_total{label}"] == 8 * 7
            before = told[0][f"vllm:e2e_request_latency_seconds_sum{label}"]
            for pid in server.worker_pids():
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: server.log.count("it is started anew") == 2)
        found = samples(base)  # waits until somebody is there
        assert found[f"vllm:e2e_request_latency_seconds_count{label}"] == 8
        assert found[f"vllm:e2e_request_latency_seconds_sum{label}"] == before
        end(server)
    assert server.log.count("ready at") == server.log.count("tool calls are read as") == 1


def test_a_killed_engine_is_replaced_for_all(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path, options=TWO, step_s=0.01, start_s=1.5) as server:
        url = server.wait_for("ready at ")
        base = url.removesuffix("/v1")
        workers = server.worker_pids()
        streams = [Stream(url, 4000) for _ in range(6)]
        wait_until_running(url, 6)
        os.kill(server.engine_pid(), signal.SIGKILL)
        for stream in streams:
            stream.join(10.0)
            assert stream.error is None
            assert any('"error"' in line for line in stream.lines[-2:])
        refused = httpx.post(f"{url}/completions", json=completion(5))
        assert error_of(refused)["code"] == "engine_restarting"
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(f"{base}/health/ready").status_code == 503
        assert httpx.get(f"{base}/health/live").status_code == 200
        assert samples(base)['octavo:engine_up{engine="0",model_name="fake"}'] == 0
        # Each of several connections gets an answer: both workers are back.
        server.wait_for("the engine is back")
        wait_until_healthy(base)
        with httpx.Client() as first, httpx.Client() as second:
            for client in (first, second):
                wait_for(lambda c=client: c.get(f"{base}/health/ready").status_code == 200)
                response = client.post(f"{url}/completions", json=completion(5))
                assert response.json()["usage"]["completion_tokens"] == 5
                found = samples(base, client)
                assert found['octavo:engine_restarts_total{engine="0",model_name="fake"}'] == 1
        assert server.worker_pids() == workers
        end(server)
    assert list(tmp_path.iterdir()) == []


def test_the_last_end_of_the_engine_ends_all(model: str, tmp_path: Path) -> None:
    options = {**TWO, "max_engine_restarts": 0}
    with serving(model, tmp_path, options=options, step_s=0.01) as server:
        url = server.wait_for("ready at ")
        streams = [Stream(url, 4000) for _ in range(4)]
        wait_until_running(url, 4)
        os.kill(server.engine_pid(), signal.SIGKILL)
        for stream in streams:
            stream.join(10.0)
            assert any('"error"' in line for line in stream.lines[-2:])
        assert server.end() == 70
    assert "is not started again after 0 restarts" in server.log
    assert "Traceback" not in server.log


def test_the_watchdog_sees_to_an_engine_that_hangs(model: str, tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.touch()
    options = {**TWO, "watchdog_timeout": 0.7}
    core = {"step_s": 0.02, "hang_at": 30, "once": str(once)}
    with serving(model, tmp_path, options=options, **core) as server:
        url = server.wait_for("ready at ")
        time.sleep(1.0)  # an idle engine answers
        streams = [Stream(url, 4000) for _ in range(2)]
        for stream in streams:
            stream.join(20.0)
            assert '"error"' in stream.lines[-2]
        wait_until_healthy(url.removesuffix("/v1"))
        assert httpx.post(f"{url}/completions", json=completion(5)).status_code == 200
        end(server)
    assert server.log.count("the engine was stuck for") >= 1
    assert server.log.count("each of its requests gets an error") == 1


@pytest.mark.parametrize("how", ["patient", "second signal", "no time"])
def test_drain(model: str, tmp_path: Path, how: str) -> None:
    options = {**TWO, "shutdown_timeout": 0.3 if how == "no time" else 60}
    with serving(model, tmp_path, options=options, step_s=0.01) as server:
        url = server.wait_for("ready at ")
        base = url.removesuffix("/v1")
        streams = [Stream(url, 300 if how == "patient" else 4000) for _ in range(4)]
        wait_until_running(url, 4)
        begin = time.perf_counter()
        server.popen.send_signal(signal.SIGTERM)
        assert server.wait_for("stopping: ").startswith("4 running requests have up to")
        if how == "patient":
            wait_for(lambda: httpx.get(f"{base}/health/ready").status_code == 503)
            refused = httpx.post(f"{url}/completions", json=completion(5))
            assert error_of(refused)["code"] == "shutting_down"
        elif how == "second signal":
            server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.perf_counter() - begin < 20
        for stream in streams:
            stream.join()
            assert stream.error is None
            assert stream.lines[-1] == "data: [DONE]"
            reason = "length" if how == "patient" else "abort"
            assert f'"finish_reason":"{reason}"' in "".join(stream.lines[-3:])
    assert "Traceback" not in server.log
    assert list(tmp_path.iterdir()) == []


def test_the_queue_is_bounded_over_all(model: str, tmp_path: Path) -> None:
    options = {**TWO, "max_num_queued_requests": 2}
    with serving(model, tmp_path, options=options, step_s=0.01, max_num_running=2) as server:
        url = server.wait_for("ready at ")
        streams = []
        for num in range(1, 5):  # two run, two wait, at both workers
            streams.append(Stream(url, 4000))
            wait_for(
                lambda n=num: httpx.get(url.replace("/v1", "/load")).json()["server_load"] == n
            )
        time.sleep(0.1)
        for _ in range(6):
            refused = httpx.post(f"{url}/completions", json=completion(5))
            assert refused.status_code == 503
            assert error_of(refused)["code"] == "queue_full"
        server.popen.send_signal(signal.SIGTERM)
        server.wait_for("stopping")
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
        for stream in streams:
            stream.join()


def test_workers_that_die_again_and_again_end_the_server(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path, options=TWO) as server:
        server.wait_for("ready at ")
        dead: set[int] = set()
        while len(dead) <= MAX_FAILURES:
            for pid in set(server.worker_pids()) - dead:
                os.kill(pid, signal.SIGKILL)
                dead.add(pid)
            time.sleep(0.01)
        assert server.end() == 70
    assert "API servers failed too often" in server.log
    assert "--api-server-count 1" in server.log
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_ready", [False, True])
def test_nobody_outlives_the_parent(model: str, tmp_path: Path, is_ready: bool) -> None:
    with serving(model, tmp_path, options=TWO) as server:
        if is_ready:
            server.wait_for("ready at ")
        wait_for(lambda: len(server.worker_pids()) == 2)
        pids = [server.engine_pid(), *server.worker_pids()]
        server.popen.kill()
        server.popen.wait()
        wait_for(lambda: all(map(is_gone, pids)), timeout_s=20.0)  # one may be just starting


def test_a_worker_that_is_told_to_end_drains_and_is_replaced(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path, options=TWO, step_s=0.01) as server:
        url = server.wait_for("ready at ")
        streams = [Stream(url, 100) for _ in range(4)]
        wait_until_running(url, 4)
        workers = server.worker_pids()
        os.kill(workers[0], signal.SIGTERM)
        for _ in range(20):
            answer = httpx.post(f"{url}/completions", json=completion(1))
            assert answer.status_code == 200  # by the other one
        for stream in streams:
            stream.join()
            assert stream.error is None
            assert stream.lines[-1] == "data: [DONE]"
        wait_for(lambda: len(set(server.worker_pids()) - set(workers)) == 1)
        end(server)
    assert "exit code 0, as it was told, and is started anew" in server.log


def test_unix_socket_keys_and_state(model: str, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    state = tmp_path / "a" / "state"
    options = {**TWO, "uds": path, "api_keys": ["secret"], "state_dir": str(state)}
    with serving(model, tmp_path, options=options) as server:
        assert server.wait_for("ready at ") == f"unix:{path}"
        assert state.is_dir()
        with httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
            url = "http://x/v1/completions"
            assert client.post(url, json=completion(5)).status_code == 401
            headers = {"Authorization": "Bearer secret"}
            assert client.post(url, json=completion(5), headers=headers).status_code == 200
        end(server)
    assert state.is_dir()
    assert not Path(path).exists()


@pytest.mark.parametrize(
    ("builder", "options", "words"),
    [
        ("build_without_memory", {}, "InsufficientMemoryError the KV cache needs 3 GiB"),
        ("build_and_die", {}, "StartupError the engine process ended with signal 11 (SIGSEGV)"),
        ("build", {"tool_call_parser": "none such"}, "ConfigError "),
    ],
)
def test_failures_to_start(
    model: str, tmp_path: Path, builder: str, options: dict[str, Any], words: str
) -> None:
    with serving(model, tmp_path, builder, options={**TWO, **options}) as server:
        assert server.end() == 1
    assert server.log.count(words) == 1
    assert "Traceback" not in server.log
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, -1])
def test_counts_that_are_none(count: int) -> None:
    with pytest.raises(ConfigError, match="--api-server-count must be at least 1"):
        ServerConfig(api_server_count=count)
