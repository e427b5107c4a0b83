from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.config import EngineConfig, ServerConfig
from octavo.errors import AddressError, CheckpointError, ConfigError, ModelNotFoundError
from octavo.launch import serve
from octavo.server.listen import bind, bind_unix, bound, listen, url_of
from tests.serving.server_process import (
    Stream,
    completion,
    error_of,
    serving,
    wait_until_healthy,
    wait_until_running,
    write_model,
)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


def test_serves_and_ends_on_a_signal(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path) as server:
        url = server.wait_for("ready at ")
        answer = httpx.post(f"{url}/completions", json=completion(5)).json()
        assert answer["usage"]["completion_tokens"] == 5
        assert answer["choices"][0]["text"] == "".join(chr(3 + i) for i in range(5))
        assert httpx.get(f"{url}/models").json()["data"][0]["id"] == "fake"
        [folder] = tmp_path.iterdir()  # the engine's address is gone, the state's folder is not
        assert folder.name.startswith("octavo-run-")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
    assert list(tmp_path.iterdir()) == []
    assert "model fake: FakeForCausalLM, float32 on cpu" in server.log
    assert "1024 blocks of 16 tokens, 16384 tokens, 4.0 MiB: 4.0 sequences of 4096" in server.log
    assert "load 0.25" in server.log
    assert "Traceback" not in server.log


def test_running_requests_may_finish(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path, step_s=0.02) as server:
        url = server.wait_for("ready at ")
        base = url.removesuffix("/v1")
        assert httpx.get(f"{base}/health/ready").status_code == 200
        stream = Stream(url, 60)
        wait_until_running(url)
        server.popen.send_signal(signal.SIGTERM)
        assert server.wait_for("stopping: ").startswith("1 running requests have up to 10 s")
        with httpx.Client() as client:
            for path in ("/health/ready", "/v1/models"):
                refused = client.get(f"{base}{path}")
                assert refused.status_code == 503
                assert error_of(refused)["code"] == "shutting_down"
                assert refused.headers["retry-after"] == "1"
                assert refused.headers["connection"] == "close"
            assert client.post(f"{url}/completions", json=completion(5)).status_code == 503
            assert client.get(f"{base}/health/live").status_code == 200
            assert client.get(f"{base}/health").status_code == 200
            assert client.get(f"{base}/load").json() == {"server_load": 1}
        assert server.end() == 0
        stream.join()
    assert stream.lines[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in "".join(stream.lines[-3:])
    assert "Traceback" not in server.log


def test_idle_connections_do_not_hold_up_the_end(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path) as server:
        url = server.wait_for("ready at ")
        with httpx.Client() as client:
            assert client.get(f"{url}/models").status_code == 200
            begin = time.perf_counter()
            server.popen.send_signal(signal.SIGTERM)
            assert server.end() == 0
            assert time.perf_counter() - begin < 3
    assert "Traceback" not in server.log


@pytest.mark.parametrize("by_signal", [True, False])
def test_what_takes_too_long_is_ended(model: str, tmp_path: Path, by_signal: bool) -> None:
    options = {"shutdown_timeout": 60 if by_signal else 0.3}
    with serving(model, tmp_path, step_s=0.01, options=options) as server:
        url = server.wait_for("ready at ")
        stream = Stream(url, 4000)
        wait_until_running(url)
        begin = time.perf_counter()
        server.popen.send_signal(signal.SIGTERM)
        server.wait_for("stopping")
        if by_signal:
            server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.perf_counter() - begin < 4
        stream.join()
    assert stream.error is None
    assert stream.lines[-1] == "data: [DONE]"
    assert "Traceback" not in server.log


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_last_end_of_the_engine_ends_requests_and_server(model: str, tmp_path: Path) -> None:
    options = {"max_engine_restarts": 0}
    with serving(model, tmp_path, step_s=0.01, options=options) as server:
        url = server.wait_for("ready at ")
        streams = [Stream(url, 4000) for _ in range(4)]
        wait_until_running(url, 4)
        begin = time.perf_counter()
        os.kill(server.engine_pid(), signal.SIGKILL)
        for stream in streams:
            stream.join(1.0)
            assert not stream.is_alive()
        assert server.end() == 70
        assert time.perf_counter() - begin < 4
    for stream in streams:
        assert stream.error is None
        assert any('"error"' in line for line in stream.lines[-2:])
    assert "signal 9 (SIGKILL)" in server.log
    assert "Traceback" not in server.log


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_engine_is_replaced(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path, step_s=0.01, start_s=0.5) as server:
        url = server.wait_for("ready at ")
        base = url.removesuffix("/v1")
        for num_restarts in (1, 2):
            streams = [Stream(url, 4000) for _ in range(4)]
            wait_until_running(url, 4)
            os.kill(server.engine_pid(), signal.SIGKILL)
            begin = time.perf_counter()
            for stream in streams:
                stream.join(1.0)
                assert not stream.is_alive()
                assert stream.error is None
                assert any('"error"' in line for line in stream.lines[-2:])
            assert time.perf_counter() - begin < 1
            refused = httpx.post(f"{url}/completions", json=completion(5))
            assert refused.status_code == 503
            assert error_of(refused)["code"] == "engine_restarting"
            assert int(refused.headers["retry-after"]) >= 1
            assert (
                'octavo:engine_up{engine="0",model_name="fake"} 0\n'
                in httpx.get(f"{base}/metrics").text
            )
            errors = wait_until_healthy(base)
            assert {error["code"] for error in errors} == {"engine_restarting"}
            assert all(int(error["retry-after"]) >= 1 for error in errors)
            answer = httpx.post(f"{url}/completions", json=completion(5)).json()
            assert answer["usage"]["completion_tokens"] == 5
            metrics = httpx.get(f"{base}/metrics").text
            expected = (
                f'octavo:engine_restarts_total{{engine="0",model_name="fake"}} {num_restarts}\n'
            )
            assert expected in metrics
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in server.log


def test_a_hanging_engine_is_killed_and_replaced(model: str, tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.touch()
    options = {"watchdog_timeout": 0.5}
    core = {"step_s": 0.02, "hang_at": 30, "once": str(once)}
    with serving(model, tmp_path, options=options, **core) as server:
        url = server.wait_for("ready at ")
        begin = time.perf_counter()
        stream = Stream(url, 4000)
        wait_until_running(url)
        whole = httpx.post(f"{url}/completions", json=completion(4000), timeout=5)
        stream.join(1.0)
        assert not stream.is_alive()
        assert 0.5 < time.perf_counter() - begin < 4.0
        assert whole.status_code == 500
        assert error_of(whole)["code"] == "engine_error"
        assert '"error"' in stream.lines[-2]
        wait_until_healthy(url.removesuffix("/v1"))
        assert httpx.post(f"{url}/completions", json=completion(5)).status_code == 200
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
    assert "the engine was stuck for" in server.log


def test_an_engine_that_fails_again_and_again_is_given_up(model: str, tmp_path: Path) -> None:
    options = {"max_engine_restarts": 2}
    with serving(model, tmp_path, raise_at=2, options=options) as server:
        url = server.wait_for("ready at ")
        for num_left in (2, 1, 0):
            response = httpx.post(f"{url}/completions", json=completion(50))
            assert response.status_code == 500
            if num_left:
                wait_until_healthy(url.removesuffix("/v1"))
        assert server.end() == 70
    assert "exit code 70, and is not started again after 2 restarts within 10 minutes" in server.log


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_signal_while_the_engine_restarts(model: str, tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.touch()
    with serving(model, tmp_path, start_s=30.0, slow_unless=str(once)) as server:
        url = server.wait_for("ready at ")
        os.kill(server.engine_pid(), signal.SIGKILL)
        server.wait_for("signal 9 (SIGKILL)")
        begin = time.perf_counter()
        assert httpx.get(f"{url.removesuffix('/v1')}/health").status_code == 503
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.perf_counter() - begin < 4
    assert "Traceback" not in server.log


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_engine_ends_with_a_killed_server(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path) as server:
        server.wait_for("ready at ")
        stat = Path(f"/proc/{server.engine_pid()}/stat")
        server.popen.kill()
        server.popen.wait()
        deadline = time.monotonic() + 2
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline, "the engine lives on"
            time.sleep(0.01)
    assert len(list(tmp_path.iterdir())) == 1  # nobody was left to remove it: the next one does
    with serving(model, tmp_path) as server:
        server.wait_for("ready at ")
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("builder", "words"),
    [
        ("build_without_memory", "InsufficientMemoryError the KV cache needs 3 GiB"),
        ("build_with_bug", "StartupError the engine failed to start: KeyError: "),
        ("build_and_die", "StartupError the engine process ended with signal 11 (SIGSEGV)"),
    ],
)
def test_failures_of_the_engine(model: str, tmp_path: Path, builder: str, words: str) -> None:
    with serving(model, tmp_path, builder) as server:
        assert server.end() == 1
    assert words in server.log
    assert ("Traceback" in server.log) == (builder == "build_with_bug")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_it_starts(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path, "build_slowly") as server:
        time.sleep(1.0)
        begin = time.perf_counter()
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 128 + signal.SIGTERM
        assert time.perf_counter() - begin < 3
    assert "Traceback" not in server.log
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use(model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressError, match=f"port {port} is in use: .* or give --port"):
            serve(EngineConfig(model=model), ServerConfig(port=port))


def test_two_servers_that_start_together() -> None:
    first = bind("127.0.0.1", 0)
    second = bind("127.0.0.1", first.getsockname()[1])
    listen(first)
    with pytest.raises(AddressError, match="in use"):
        listen(second)
    first.close()
    second.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return cert, key


@pytest.mark.parametrize("has_several", [False, True])
def test_tls(model: str, tmp_path: Path, certificate: tuple[Path, Path], has_several: bool) -> None:
    cert, key = certificate
    options: dict[str, Any] = {"ssl_certfile": str(cert), "ssl_keyfile": str(key)}
    if has_several:
        both = cert.with_name("both.pem")
        both.write_text(cert.read_text() + key.read_text())
        options = {"ssl_certfile": str(both), "api_server_count": 2}
    with serving(model, tmp_path, options=options) as server:
        url = server.wait_for("ready at ")
        assert url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=trusting, trust_env=False) as client:
            assert client.get(f"{url}/models").json()["data"][0]["id"] == "fake"
            answer = client.post(f"{url}/completions", json=completion(20, stream=True))
            assert answer.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/models")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{url}/models".replace("https", "http"))
        old = ssl.create_default_context(cafile=str(cert))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/models", verify=old)
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
    assert "Traceback" not in server.log


def test_certificates_that_cannot_be_used(
    model: str, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    other, noise = tmp_path / "other.pem", tmp_path / "noise.pem"
    subprocess.run(["openssl", "genrsa", "-out", other, "2048"], check=True, capture_output=True)
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:x", "-in", key, "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    noise.write_text("hello")
    for files, message in (
        ((tmp_path / "none", None), "cannot read .*none: No such file"),
        ((cert, tmp_path / "none"), "cannot read .*none: No such file"),
        ((cert, other), "cannot use .*: key values mismatch"),
        ((cert, noise), "cannot use .*noise.pem for TLS"),
        ((noise, key), "cannot use .*noise.pem"),
        ((cert, None), "cannot use .*cert.pem for TLS"),
        ((cert, locked), "the TLS key has a password"),
    ):
        names = [str(file) if file else None for file in files]
        config = ServerConfig(port=0, ssl_certfile=names[0], ssl_keyfile=names[1])
        with pytest.raises(ConfigError, match=message):
            serve(EngineConfig(model=model), config)


def test_a_unix_socket(model: str, tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    socket_left_behind = socket.socket(socket.AF_UNIX)
    socket_left_behind.bind(str(path))
    socket_left_behind.close()  # as a killed server leaves it
    with serving(model, tmp_path, options={"uds": str(path)}) as server:
        assert server.wait_for("ready at ") == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://x/v1/models").json()["data"][0]["id"] == "fake"
            answer = client.post("http://x/v1/completions", json=completion(20, stream=True))
            assert answer.text.endswith("data: [DONE]\n\n")
        with pytest.raises(AddressError, match="is in use: stop what listens there"):
            bind_unix(path)
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
    assert "octavo.access: - GET /v1/models: 200" in server.log
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in server.log


def test_paths_that_are_no_place_for_a_socket(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(AddressError, match="it is there, and is no socket"):
        bind_unix(file)
    assert file.read_text() == "precious"
    with pytest.raises(AddressError, match="No such file or directory"):
        bind_unix(tmp_path / "no" / "folder")
    with pytest.raises(AddressError, match="too long"):
        bind_unix(tmp_path / ("x" * 200))


def test_only_an_own_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    with bound(ServerConfig(uds=str(path))):
        path.unlink()
        other = bind_unix(path)
    assert path.exists()
    other.close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_hosts_that_are_not_ours(host: str) -> None:
    with pytest.raises(AddressError, match=f"cannot listen at .*{host}"):
        bind(host, 0)


def test_urls() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6(host: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with bind(host, 0) as listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_models_that_do_not_open(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        serve(EngineConfig(model=str(tmp_path / "none")), ServerConfig(port=0))
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03")
    with pytest.raises(CheckpointError):
        serve(
            EngineConfig(model=str(tmp_path / "model.gguf")),
            ServerConfig(port=0),
            builder="tests.engine.fake_core:build",
        )
