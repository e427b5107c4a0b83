"""How the server behaves around its routes: ids, logs, bounds, silence, pages, load, draining."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from octavo.config import ServerConfig
from octavo.errors import ConfigError, EngineUnavailableError
from octavo.protocol import sse
from octavo.server import http as server_http
from octavo.server import http_protocol
from octavo.server.app import create_app
from octavo.server.scope import Exchange
from octavo.server.stream import EventStream
from tests.server.fake_engine import FakeEngine, FakeTokenizer
from tests.server.test_bad_input import error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.conftest import RunningServer

COMPLETION = {"model": "fake", "prompt": "x", "max_tokens": 4, "stream": True}


def talk(server: RunningServer, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Send bytes, and read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
            while data := connection.recv(65536):
                answer += data
        except (ConnectionResetError, BrokenPipeError):
            pass  # it closed while we had more to say
    return answer


def answer_of(raw: bytes) -> httpx.Response:
    """A raw answer as httpx shows it."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = [tuple(line.split(b": ", 1)) for line in lines]
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)  # type: ignore[arg-type]


# Request ids and the log


def test_every_end_is_logged_with_the_id(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "octavo.access")
    named = {"X-Request-Id": "my-id"}
    assert server.client.get("/v1/models", headers=named).status_code == 200
    assert server.client.get("/no/such", headers=named).status_code == 404
    assert server.client.post("/v1/completions", json=COMPLETION, headers=named).status_code == 200
    assert server.client.get("/health", headers=named).status_code == 200  # probes are quiet
    server.engine.first_delay = 30
    with pytest.raises(httpx.ReadTimeout):
        server.client.post("/v1/completions", json=COMPLETION, headers=named, timeout=0.2)
    server.wait_until_idle()
    deadline = time.monotonic() + 2
    while len(caplog.messages) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    pattern = r"127\.0\.0\.1 (\w+ \S+): (\d+) in [\d.]+ s, request my-id"
    ends = [re.fullmatch(pattern, message) for message in caplog.messages]
    assert [end and end.groups() for end in ends] == [
        ("GET /v1/models", "200"),
        ("GET /no/such", "404"),
        ("POST /v1/completions", "200"),
        ("POST /v1/completions", "499"),
    ]


def test_errors_in_a_stream_are_logged_with_the_id(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.engine.fail_at = 2
    named = {"X-Request-Id": "my-id"}
    answer = server.client.post("/v1/completions", json=COMPLETION, headers=named)
    assert answer.headers["x-request-id"] == "my-id"
    *_, error, done = [line for line in answer.text.split("\n\n") if line]
    assert done == "data: [DONE]"
    assert "my-id" in error
    assert "secret" not in error
    assert any("my-id" in m and "/secret/path" in m for m in caplog.messages)


# Bounds on the head


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %d\r\n" % (i, i) for i in range(300)) + b"\r\n",
    ],
    ids=["url", "header", "many"],
)
@pytest.mark.parametrize("size", [1_000_000, 700, 31])
def test_a_head_that_is_too_large(
    serve: Callable[..., RunningServer], head: bytes, size: int
) -> None:
    server = serve(max_header_bytes=4096)
    pieces = [head[i : i + size] for i in range(0, len(head), size)]
    error = error_of(answer_of(talk(server, *pieces)), 431)
    assert error["code"] == "request_header_fields_too_large"
    server.assert_serves()


def test_an_endless_header_is_cut_off(
    serve: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.1)
    server = serve(max_header_bytes=4096)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Endless: ")
        begin = time.monotonic()
        try:
            while time.monotonic() - begin < 5:
                connection.sendall(b"x" * 1000)
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert time.monotonic() - begin < 2
    server.assert_serves()


def test_a_head_within_the_bound_in_pieces(serve: Callable[..., RunningServer]) -> None:
    server = serve(max_header_bytes=4096)
    head = b"GET /health HTTP/1.1\r\nConnection: close\r\nX-Long: " + b"x" * 3900 + b"\r\n\r\n"
    for size in (1000, 97):
        pieces = [head[i : i + size] for i in range(0, len(head), size)]
        assert answer_of(talk(server, *pieces, pause_s=0.002)).status_code == 200
    body = b'{"model": "fake", "prompt": "' + b"x" * 1000 + b'", "max_tokens": 1}'
    post = b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    two = talk(server, (post + head) * 2)  # bodies do not count, nor do earlier requests
    assert two.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("raw", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"hello\r\n\r\n"])
def test_what_is_no_http_gets_our_error(server: RunningServer, raw: bytes) -> None:
    error = error_of(answer_of(talk(server, raw)), 400)
    assert error["code"] == "invalid_http"


def test_who_sends_no_head_is_cut_off(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    for pieces in ((), (b"GET /health HT",), (b"GET /health HTTP/1.1\r\n", *[b"A: b\r\n"] * 10)):
        begin = time.monotonic()
        assert talk(server, *pieces, pause_s=0.01) == b""
        assert 0.15 < time.monotonic() - begin < 2
    first = b"GET /health HTTP/1.1\r\n\r\n"
    assert talk(server, first, b"GET /hea", pause_s=0.05).count(b"HTTP/1.1 200") == 1
    server.engine.delay = 0.1  # a long answer is no late head
    assert server.completion(max_tokens=5).status_code == 200


def test_a_body_that_stops_coming(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_http, "BODY_SILENCE_S", 0.2)
    head = b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\nConnection: close\r\n\r\n"
    error = error_of(answer_of(talk(server, head, b'{"model":')), 408)
    assert error["code"] == "request_timeout"


# Silence in a stream


@pytest.mark.parametrize("chat", [False, True])
def test_silence_is_broken_by_comments(serve: Callable[..., RunningServer], chat: bool) -> None:
    server = serve(sse_keep_alive=0.02)
    server.engine.first_delay = 0.1
    server.engine.delay = 0.05
    ask = server.chat if chat else server.completion
    text = ask(stream=True, max_tokens=12).text
    server.engine.first_delay = server.engine.delay = 0
    quick = ask(stream=True, max_tokens=12).text
    assert ": keep-alive" not in quick
    first, *_ = text.split("\n\n")
    assert first == ": keep-alive"  # before the first token
    events = [event for event in text.split("\n\n") if event and event != ": keep-alive"]
    ids = re.compile(r'"(id|created)":("[^"]*"|\d+)')
    assert [ids.sub("", e) for e in events] == [ids.sub("", e) for e in quick.split("\n\n") if e]
    between = text[text.index("data: ") : text.index("[DONE]")]
    assert ": keep-alive" in between


def test_comments_do_not_disturb_the_official_client(serve: Callable[..., RunningServer]) -> None:
    server = serve(sse_keep_alive=0.02)
    server.engine.delay = 0.05
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=server.client)
    chunks = client.completions.create(model="fake", prompt="x", max_tokens=5, stream=True)
    text = "".join(chunk.choices[0].text for chunk in chunks)
    server.engine.delay = 0
    assert text == server.completion(prompt="x", max_tokens=5).json()["choices"][0]["text"]


def test_a_failure_after_a_comment_is_an_event(serve: Callable[..., RunningServer]) -> None:
    server = serve(sse_keep_alive=0.05)
    server.engine.first_delay = 0.2
    server.engine.fail_at = 0
    answer = server.completion(stream=True)
    assert answer.status_code == 200
    comment, *_, error, done, end = answer.text.split("\n\n")
    assert (comment, done, end) == (": keep-alive", "data: [DONE]", "")
    assert '"type":"server_error"' in error


def test_no_comments_where_they_are_off(serve: Callable[..., RunningServer]) -> None:
    server = serve(sse_keep_alive=0)
    server.engine.delay = 0.1
    assert ": keep-alive" not in server.completion(stream=True, max_tokens=3).text


async def test_a_slow_reader_is_no_silence() -> None:
    """While a reader makes us wait, no comments pile up behind what waits."""
    may_send = asyncio.Event()
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        await may_send.wait()
        sent.append(message.get("body", b"start"))

    async def receive() -> Any:
        await asyncio.sleep(30)

    async def events() -> Any:
        for number in range(3):
            yield b"data: %d\n\n" % number

    app = create_app(
        FakeEngine(), FakeTokenizer(), ServerConfig(served_model_names=("m",), sse_keep_alive=0.01)
    )
    scope = {"type": "http", "app": app, "state": {"exchange": Exchange("id", send, None)}}
    answer = asyncio.ensure_future(EventStream(events())(scope, receive, send))
    await asyncio.sleep(0.1)
    may_send.set()
    await answer
    assert sent == [b"start", b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n", sse.DONE]


# Pages of other origins


def test_without_origins_there_are_no_cors_headers(server: RunningServer) -> None:
    answer = server.client.get("/v1/models", headers={"Origin": "https://page.example"})
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_cors(serve: Callable[..., RunningServer]) -> None:
    server = serve(
        allowed_origins=("https://page.example",),
        allowed_methods=("GET", "POST"),
        allow_credentials=True,
        api_keys=("sk-1",),
    )
    origin = {"Origin": "https://page.example"}
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    allowed = server.client.options("/v1/chat/completions", headers=origin | preflight)
    assert allowed.status_code == 200  # browsers send no key with it
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    assert allowed.headers["access-control-allow-credentials"] == "true"
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert allowed.headers["x-request-id"]
    other = {"Origin": "https://other.example"}
    assert server.client.options("/v1/models", headers=other | preflight).status_code == 400
    delete = {**origin, **preflight, "Access-Control-Request-Method": "DELETE"}
    assert server.client.options("/v1/models", headers=delete).status_code == 400

    refused = server.client.get("/v1/models", headers=origin)
    error_of(refused, 401)
    assert refused.headers["access-control-allow-origin"] == "https://page.example"  # readable
    server.client.headers["Authorization"] = "Bearer sk-1"
    stream = server.client.post("/v1/completions", json=COMPLETION, headers=origin)
    assert stream.headers["access-control-allow-origin"] == "https://page.example"
    assert "X-Request-Id" in stream.headers["access-control-expose-headers"]
    assert stream.text.endswith("data: [DONE]\n\n")
    foreign = server.client.get("/v1/models", headers=other)
    assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"allowed_origins": ("*",), "allow_credentials": True}, "name the origins"),
        ({"allow_credentials": True}, "--allow-credentials needs --allowed-origins"),
        ({"allowed_methods": ("GET",)}, "--allowed-methods needs --allowed-origins"),
        ({"ssl_keyfile": "key.pem"}, "--ssl-keyfile needs --ssl-certfile"),
        ({"max_body_bytes": 0}, "--max-body-bytes must be at least 1"),
        ({"max_header_bytes": 0}, "--max-header-bytes must be at least 1"),
        ({"shutdown_timeout": float("nan")}, "--shutdown-timeout must be at least 0"),
        ({"sse_keep_alive": -1}, "--sse-keep-alive must be at least 0"),
        ({"max_num_queued_requests": -1}, "--max-num-queued-requests must be at least 0"),
        ({"watchdog_timeout": 0}, "--watchdog-timeout must be above 0"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerConfig(**fields)


# Load, readiness, draining


def test_load_and_draining(server: RunningServer) -> None:
    server.engine.delay = 0.02
    lifecycle = server.app.context.lifecycle
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.completion(stream=True)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while server.engine.num_open < 3:
        time.sleep(0.002)
    assert server.client.get("/load").json() == {"server_load": 3}
    assert server.client.get("/health/ready").status_code == 200
    lifecycle.drain()
    for path in ("/health/ready", "/v1/models", "/no/such/route"):
        refused = server.client.get(path)
        assert error_of(refused, 503)["code"] == "shutting_down"
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
    assert error_of(server.chat(), 503)["code"] == "shutting_down"
    for path in ("/health", "/health/live", "/ping", "/load", "/metrics", "/version"):
        assert server.client.get(path).status_code == 200
    for thread in threads:
        thread.join()
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)
    deadline = time.monotonic() + 2
    while lifecycle.num_open:
        assert time.monotonic() < deadline
    assert server.client.get("/load").json() == {"server_load": 0}
    assert len(server.engine.requests) == 3


def test_failed_requests_do_not_stay_in_the_load(server: RunningServer) -> None:
    server.completion(temperature=-1)
    server.client.get("/no/such")
    server.engine.fail_at = 1
    server.completion()
    server.chat(stream=True)
    deadline = time.monotonic() + 2  # a stream's last byte comes before its end is counted
    while server.client.get("/load").json() != {"server_load": 0}:
        assert time.monotonic() < deadline


def test_alive_healthy_ready_are_three_questions(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask() -> dict[str, int]:
        names = ("live", "ready")
        codes = {name: server.client.get(f"/health/{name}").status_code for name in names}
        return codes | {"healthy": server.client.get("/health").status_code}

    assert ask() == {"live": 200, "ready": 200, "healthy": 200}
    for code, live in (("engine_restarting", 200), ("engine_stuck", 200), ("engine_dead", 503)):

        def fail(code: str = code) -> None:
            raise EngineUnavailableError("not now", code=code)

        monkeypatch.setattr(server.engine, "check_health", fail)
        assert ask() == {"live": live, "ready": 503, "healthy": 503}
        assert server.client.post("/ping").status_code == 503
