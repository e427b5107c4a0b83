from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from octavo.config import ServerConfig
from octavo.errors import ConfigError
from octavo.server.app import create_app
from tests.server.fake_engine import FakeEngine, FakeTokenizer
from tests.server.test_bad_input import error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.conftest import RunningServer

KEYS = ("sk-first", "sk-second")
ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/fake"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/version"),
    ("GET", "/metrics"),
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


def test_keys_are_not_kept_in_the_clear(guarded: RunningServer) -> None:
    app = create_app(
        FakeEngine(), FakeTokenizer(), ServerConfig(served_model_names=("m",), api_keys=KEYS)
    )
    layer = app.middleware_stack
    seen = []
    while layer is not None:
        own = {name: value for name, value in vars(layer).items() if "app" not in name}
        seen.append(repr(own))
        layer = getattr(layer, "app", None) or getattr(layer, "_app", None)
    assert any("_digests" in text for text in seen)
    assert not any(key in text for text in seen for key in KEYS)


@pytest.mark.parametrize("key", ["", " ", "sk-ä", "a\nb", " padded"])
def test_unusable_keys_stop_the_start(key: str) -> None:
    config = ServerConfig(served_model_names=("m",), api_keys=("good", key))
    with pytest.raises(ConfigError, match="API key"):
        create_app(FakeEngine(), FakeTokenizer(), config)


async def test_websockets_need_a_key_too() -> None:
    config = ServerConfig(served_model_names=("m",), api_keys=KEYS)
    app = create_app(FakeEngine(), FakeTokenizer(), config)
    sent = []

    async def send(message: object) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    await app({"type": "websocket", "path": "/health", "headers": []}, receive, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]
