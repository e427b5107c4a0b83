"""A real uvicorn server around the application, in a thread, on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn

from octavo.config import ServerConfig, api_key_digest
from octavo.observability.metrics import Metrics
from octavo.server.app import Application, create_app
from octavo.server.http_protocol import bounded
from tests.server.fake_engine import FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from octavo.server.context import GrammarCheck

NAMES = ("fake", "org/alias")


@dataclass
class RunningServer:
    url: str
    port: int
    engine: FakeEngine
    tokenizer: FakeTokenizer
    metrics: Metrics
    client: httpx.Client
    app: Application

    def completion(self, **fields: Any) -> httpx.Response:
        body = {"model": "fake", "prompt": "hello", "max_tokens": 8, **fields}
        return self.client.post("/v1/completions", json=body)

    def chat(self, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "fake", "messages": messages, "max_tokens": 8, **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def assert_serves(self) -> None:
        """A good request of each kind works, and nothing is left open."""
        self.wait_until_idle()
        assert self.completion().status_code == 200
        assert self.chat().status_code == 200

    def wait_until_idle(self, timeout: float = 2.0) -> None:
        deadline = time.monotonic() + timeout
        while self.engine.num_open:
            assert time.monotonic() < deadline, f"{self.engine.num_open} requests left open"
            time.sleep(0.002)


class QuickServer(uvicorn.Server):
    """Ends when it is told to, not at the next tick of a clock."""

    async def main_loop(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        await self.on_tick(0)
        await self.ended.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does it, less its tenth of a second for goodbyes where all have left."""
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for listener in (*self.servers, *(sockets or [])):
            listener.close()
        for server in self.servers:
            await server.wait_closed()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)


@contextlib.contextmanager
def running_servers() -> Iterator[Callable[..., RunningServer]]:
    """Starts servers; all of them are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(
            *,
            engine: FakeEngine | None = None,
            tokenizer: FakeTokenizer | None = None,
            defaults: dict[str, Any] | None = None,
            http: str = "httptools",
            headers: dict[str, str] | None = None,
            api_keys: tuple[str, ...] = (),
            tls: ssl.SSLContext | None = None,
            grammars: GrammarCheck | None = None,
            **config: Any,
        ) -> RunningServer:
            engine = engine or FakeEngine()
            tokenizer = tokenizer or FakeTokenizer()
            metrics = Metrics("fake", lambda: engine.stats)
            settings = ServerConfig(
                served_model_names=NAMES,
                api_key_digests=tuple(map(api_key_digest, api_keys)),
                **config,
            )
            app = create_app(
                engine,
                tokenizer,
                settings,
                metrics=metrics,
                defaults=defaults,
                grammars=grammars,
            )
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            uvicorn_config = uvicorn.Config(
                app,
                log_config=None,
                lifespan="off",
                ws="none",
                http=bounded(settings.max_header_bytes) if http == "httptools" else http,  # type: ignore[arg-type]
                timeout_graceful_shutdown=1,
            )
            uvicorn_config.load()
            uvicorn_config.ssl = tls
            server = QuickServer(uvicorn_config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()

            def stop() -> None:
                for _ in range(50):  # Clients have left by now: let the server notice.
                    if not server.server_state.connections:
                        break
                    time.sleep(0.001)
                server.end()
                thread.join()

            stack.callback(stop)
            while not hasattr(server, "ended"):
                time.sleep(0.002)
            port = listener.getsockname()[1]
            url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
            client = stack.enter_context(
                httpx.Client(
                    base_url=url, headers=headers, timeout=20, trust_env=False, verify=False
                )
            )
            return RunningServer(url, port, engine, tokenizer, metrics, client, app)

        yield start


@pytest.fixture
def serve() -> Iterator[Callable[..., RunningServer]]:
    """Starts servers; all of them are stopped at the test's end."""
    with running_servers() as start:
        yield start


@pytest.fixture
def server(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server with nothing special."""
    return serve()
