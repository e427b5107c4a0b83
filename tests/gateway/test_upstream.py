"""Connections to a backend: names that lie, certificates, waiting in turn, none left behind."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from octavo.errors import ConfigError, UpstreamError
from octavo.gateway.config_backends import Backend, ModelInfo
from octavo.gateway.upstream import Upstream
from tests.gateway.fake_upstream import FakeUpstream

if TYPE_CHECKING:
    from pathlib import Path

MODELS = {"ok": ModelInfo()}


def upstream(url: str, **more: Any) -> Upstream:
    """The way to a backend."""
    return Upstream("a", Backend(url=url, models=MODELS, **more))


def resolving(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> list[str]:
    """Let every name have these addresses; the names that were looked up."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        await asyncio.sleep(0.01)
        kind = socket.SOCK_STREAM
        families = [socket.AF_INET6 if ":" in one else socket.AF_INET for one in hosts]
        return [(f, kind, 6, "", (one, port)) for f, one in zip(families, hosts, strict=True)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


async def test_a_name_that_leads_to_credentials_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resolving(monkeypatch, "127.0.0.1", "169.254.169.254")
    way = upstream("http://innocent.example")
    with pytest.raises(UpstreamError, match="link-local"):
        await way.acquire(1.0)
    resolving(monkeypatch, "fe80::1%lo")
    with pytest.raises(UpstreamError, match="link-local"):
        await way.acquire(1.0)
    assert way.num_open == 0
    await way.close()


@pytest.mark.parametrize(
    "host", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518"]
)
async def test_other_spellings_of_addresses_are_seen_through(host: str) -> None:
    way = upstream(f"http://{host}")
    with pytest.raises(UpstreamError, match="link-local"):
        await way.acquire(1.0)
    await way.close()


async def test_a_name_is_looked_up_once_for_many_and_all_its_addresses_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with FakeUpstream() as fake:
        # Nobody listens on 127.0.0.9: the second address answers
        asked = resolving(monkeypatch, "127.0.0.9", "127.0.0.1")
        way = upstream(f"http://engine.example:{fake.port}")
        connections = await asyncio.gather(*(way.acquire(1.0) for _ in range(5)))
        assert asked[:1] == ["engine.example"]
        assert asked.count("engine.example") == 1
        for connection in connections:
            way.release(connection)
        assert way.num_idle == 5
        await way.close()
        await fake.idle()


async def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    way = upstream("http://nobody.example")
    for _ in range(2):
        with pytest.raises(UpstreamError, match="cannot be connected to") as caught:
            await way.acquire(1.0)
        assert "nobody.example" not in str(caught.value)
    await way.close()


async def test_one_of_many_that_wait_for_a_name_may_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeUpstream() as fake:
        resolving(monkeypatch, "127.0.0.1")
        way = upstream(f"http://engine.example:{fake.port}")
        first = asyncio.create_task(way.acquire(1.0))
        second = asyncio.create_task(way.acquire(1.0))
        await asyncio.sleep(0)
        first.cancel()
        way.release(await second)
        await way.close()


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for a name that vouches for itself, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command += f" -subj /CN={name} -addext subjectAltName=DNS:{name} -keyout {key} -out {cert}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
async def test_certificates_are_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cert, key = certificate(tmp_path, "localhost")
    other, _ = certificate(tmp_path, "other")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    # Nobody vouches for it; somebody else does; it is for another name
    for host, ca_file in (("localhost", ""), ("localhost", str(other)), ("127.0.0.1", str(cert))):
        way = upstream(f"https://{host}:{port}", ca_file=ca_file)
        with pytest.raises(UpstreamError, match="cannot be connected to"):
            await way.acquire(2.0)
        await way.close()
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
    way = upstream(f"https://localhost:{port}", ca_file=str(cert))
    connection = await way.acquire(2.0)
    connection.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"", limit_s=1)
    await connection.head()
    assert await connection.body(10) == b"hi"
    way.release(connection)
    await way.close()
    server.close()
    await asyncio.sleep(0.02)
    with pytest.raises(ConfigError, match=r"backends\.a: cannot read certificates"):
        upstream("https://localhost", ca_file=str(tmp_path / "none.pem"))


async def test_those_who_wait_come_in_turn_and_may_leave() -> None:
    async with FakeUpstream() as fake:
        way = upstream(fake.url, max_connections=1)
        held = await way.acquire(1.0)
        order: list[int] = []

        async def one(number: int) -> None:
            connection = await way.acquire(1.0)
            order.append(number)
            way.release(connection)

        tasks = [asyncio.create_task(one(number)) for number in range(4)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        await asyncio.sleep(0)
        way.release(held)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 2, 3]
        assert fake.num_connections == 1
        assert len(way._waiters) == 0
        await way.close()


async def test_one_that_is_cancelled_as_its_turn_comes_gives_it_on() -> None:
    async with FakeUpstream() as fake:
        way = upstream(fake.url, max_connections=1)
        held = await way.acquire(1.0)
        first = asyncio.create_task(way.acquire(1.0))
        second = asyncio.create_task(way.acquire(1.0))
        await asyncio.sleep(0.01)
        way.release(held)
        first.cancel()
        way.release(await second)
        assert first.cancelled()
        await way.close()


async def test_old_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.gateway.upstream.KEEP_S", 0.05)
    async with FakeUpstream() as fake:
        way = upstream(fake.url)
        both = [await way.acquire(1.0) for _ in range(2)]
        way.release(both[0])
        await asyncio.sleep(0.03)
        way.release(both[1])
        await asyncio.sleep(0.035)
        assert way.num_idle == 1
        await asyncio.sleep(0.05)
        assert way.num_open == 0
        await fake.idle()
        await way.close()


async def test_what_is_closed_opens_nothing_and_lets_the_rest_end() -> None:
    async with FakeUpstream() as fake:
        way = upstream(fake.url)
        held, idle = await way.acquire(1.0), await way.acquire(1.0)
        way.release(idle)
        await way.close()
        with pytest.raises(UpstreamError, match="no longer configured"):
            await way.acquire(1.0)
        assert held.is_open
        way.release(held)
        await fake.idle()
        assert way.num_open == 0


async def test_environments_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with FakeUpstream() as fake:
        way = upstream(fake.url)
        way.release(await way.acquire(1.0))
        await way.close()
