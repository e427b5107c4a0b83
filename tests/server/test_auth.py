from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from octavo.config import ServerConfig, api_key_digest, read_api_keys
from octavo.errors import ConfigError
from octavo.server.app import create_app
from tests.server.fake_engine import FakeEngine, FakeTokenizer
from tests.server.test_bad_input import error_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.server.conftest import RunningServer

KEYS = ("sk-first", "sk-second")
CONFIG = ServerConfig(served_model_names=("m",), api_key_digests=tuple(map(api_key_digest, KEYS)))
ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/fake"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/version"),
    ("GET", "/load"),
    ("GET", "/openapi.json"),
    ("GET", "/metrics"),
    ("GET", "/dashboard/data"),
    ("GET", "/no/such/route"),
    ("DELETE", "/v1/models"),
    ("GET", "/health/"),
    ("GET", "//health"),
    ("GET", "/HEALTH"),
    ("GET", "/v1/models?path=/health"),
]


@pytest.fixture
def guarded(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve(api_keys=KEYS)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "sk-first",
        "Basic sk-first",
        "Bearer sk-firs",
        "Bearer sk-first2",
        "Bearer SK-FIRST",
        "Bearer sk-first,sk-second",
        "Bearer sk-first sk-second",
    ],
)
def test_bad_keys(guarded: RunningServer, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path in ROUTES:
        response = guarded.client.request(method, path, headers=headers)
        error = error_of(response, 401)
        assert error["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"
        assert not any(key in response.text for key in KEYS)
    assert guarded.client.get("/health").status_code == 200
    assert guarded.client.head("/health").status_code == 200
    assert guarded.client.get("/health?x=1").status_code == 200


def test_bytes_beyond_ascii_and_two_headers(guarded: RunningServer) -> None:
    raw = [(b"Authorization", b"Bearer sk-first\xff")]
    assert guarded.client.get("/v1/models", headers=raw).status_code == 401
    twice = [("Authorization", "Bearer wrong"), ("Authorization", "Bearer sk-first")]
    assert guarded.client.get("/v1/models", headers=httpx.Headers(twice)).status_code == 401


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_good_keys(guarded: RunningServer, scheme: str, key: str) -> None:
    guarded.client.headers["Authorization"] = f"{scheme} {key}"
    guarded.assert_serves()
    statuses = {
        (method, path): guarded.client.request(method, path).status_code for method, path in ROUTES
    }
    assert 401 not in statuses.values()
    assert statuses["GET", "/metrics"] == 200


def test_keys_as_anthropics_clients_send_them(guarded: RunningServer) -> None:
    def status(*headers: tuple[str, str]) -> int:
        return guarded.client.get("/v1/models", headers=httpx.Headers(list(headers))).status_code

    assert status(("X-Api-Key", KEYS[0])) == 200
    assert status(("X-Api-Key", "wrong")) == 401
    assert status(("X-Api-Key", "")) == 401
    assert status(("X-Api-Key", "wrong"), ("X-Api-Key", KEYS[0])) == 401
    assert status(("X-Api-Key", KEYS[0]), ("Authorization", "Bearer wrong")) == 401
    assert status(("X-Api-Key", "wrong"), ("Authorization", f"Bearer {KEYS[1]}")) == 200


def test_each_key_is_a_tenant(guarded: RunningServer) -> None:
    for key in (KEYS[0], KEYS[1], KEYS[0]):
        guarded.client.headers["Authorization"] = f"Bearer {key}"
        assert guarded.chat().status_code == 200
    first, second, again = (options.tenant for options in guarded.engine.options.values())
    assert first == again != second
    assert not any(key in tenant for tenant in (first, second) for key in KEYS)


def test_without_keys_there_is_one_tenant(server: RunningServer) -> None:
    server.client.headers["Authorization"] = "Bearer whoever"
    assert server.chat().status_code == 200
    assert [options.tenant for options in server.engine.options.values()] == [""]


def test_keys_are_not_kept_in_the_clear() -> None:
    app = create_app(FakeEngine(), FakeTokenizer(), CONFIG)
    seen: list[str] = []
    queue: list[Any] = [app]
    known: set[int] = set()
    while queue:
        part = queue.pop()
        if id(part) in known:
            continue
        known.add(id(part))
        names = [*getattr(part, "__dict__", ()), *getattr(part, "__slots__", ())]
        values = [getattr(part, name, None) for name in names]
        seen += [repr(value) for value in values]
        queue += [value for value in values if type(value).__module__.startswith("octavo.")]
    assert any(repr(api_key_digest(KEYS[0])) in text for text in seen)
    assert not any(key in text for text in seen for key in KEYS)
    assert repr(api_key_digest(KEYS[0])) not in repr(app.context.config)


@pytest.mark.parametrize("key", ["", " ", "sk-ä", "a\nb", " padded"])
def test_unusable_keys(key: str) -> None:
    with pytest.raises(ConfigError, match="API key"):
        api_key_digest(key)


def test_keys_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# the team's\n sk-one \n\nsk-two\n")
    assert read_api_keys(file) == ("sk-one", "sk-two")
    file.write_text("# none yet\n\n")
    with pytest.raises(ConfigError, match="has no API key"):
        read_api_keys(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_api_keys(file)
    with pytest.raises(ConfigError, match="No such file"):
        read_api_keys(tmp_path / "none")


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/ping"])
def test_probes_need_no_key(guarded: RunningServer, path: str) -> None:
    for method in ("GET", "HEAD"):
        assert guarded.client.request(method, path).status_code == 200
    assert guarded.client.get(f"{path}?x=1").status_code == 200


@pytest.mark.parametrize(
    "request_line",
    ["GET /v1/models", "GET http://127.0.0.1/v1/models", "GET //health/../v1/models"],
)
@pytest.mark.parametrize("host", ["x", "/health", "x/health", "health", "x:1/health?"])
def test_no_header_opens_a_path(guarded: RunningServer, request_line: str, host: str) -> None:
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=5) as connection:
        forged = f"Host: {host}\r\nX-Forwarded-Prefix: /health\r\nX-Original-URL: /health"
        connection.sendall(
            f"{request_line} HTTP/1.1\r\n{forged}\r\nConnection: close\r\n\r\n".encode()
        )
        answer = connection.recv(65536)
    assert answer.split(b" ")[1] in (b"400", b"401")
    assert b"max_model_len" not in answer


async def test_websockets_need_a_key_too() -> None:
    app = create_app(FakeEngine(), FakeTokenizer(), CONFIG)
    sent: list[object] = []

    async def send(message: object) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    await app({"type": "websocket", "path": "/health", "headers": []}, receive, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]
