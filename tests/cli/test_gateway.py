"""`octavo gateway` and `octavo serve --gateway-config`, as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from octavo.cli.main import main
from octavo.cli.serve_gateway import backend_of
from octavo.errors import ConfigError
from octavo.gateway.config import load_config
from octavo.server.listen import bind
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.running import QUICK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.conftest import TinyLlama

ROOT = Path(__file__).resolve().parents[2]
CHAT = {"model": "slow", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}


def config(folder: Path, url: str, more: str = "") -> Path:
    path = folder / "gateway.yaml"
    path.write_text(f"""
keys: {{required: false}}
backends:
  one:
    url: {url}
    models: {{ok: {{}}, slow: {{}}}}{QUICK}
{more}
""")
    return path


def free_port() -> int:
    with bind("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def process(*args: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs; ended in any case."""
    popen = subprocess.Popen(
        [sys.executable, "-m", "octavo.cli.main", *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield popen
    finally:
        popen.kill()
        popen.communicate()


async def answers(url: str, popen: subprocess.Popen[str], within_s: float = 30.0) -> None:
    """Return when a GET is answered 200."""
    until = time.monotonic() + within_s
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            assert popen.poll() is None, popen.communicate()[1]
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < until
            await asyncio.sleep(0.02)


async def until(
    ask: Callable[[], Awaitable[httpx.Response]], is_good: Callable[[httpx.Response], bool]
) -> None:
    """Ask until the answer is good."""
    async with asyncio.timeout(5):
        while not is_good(await ask()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = config(tmp_path, "http://127.0.0.1:1")
    assert main(["gateway", "--config", str(good), "--check"]) == 0
    assert "is good" in capsys.readouterr().out
    bad = config(tmp_path, "http://127.0.0.1:1", "tiers: {a: {targets: [one/nothing]}}\nmodel: {}")
    assert main(["gateway", "--config", str(bad), "--check"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{bad}:") for line in lines)
    assert main(["gateway", "--config", str(tmp_path / "none.yaml"), "--check"]) == 1
    assert "cannot read" in capsys.readouterr().err


def test_a_bad_configuration_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = config(tmp_path, "nowhere")
    assert main(["gateway", "--config", str(bad)]) == 1
    assert "url" in capsys.readouterr().err
    good = config(tmp_path, "http://127.0.0.1:1")
    assert main(["gateway", "--config", str(good), "--port", "70000"]) == 1


def test_a_ledger_that_cannot_be_written_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = f"ledger: {{url: {tmp_path}/nowhere/l.db}}"
    path = config(tmp_path, "http://127.0.0.1:1", f"{ledger}\nserver: {{port: {free_port()}}}")
    (tmp_path / "nowhere").write_text("a file where a folder should be")
    assert main(["gateway", "--config", str(path)]) == 1
    assert "the ledger cannot be opened" in capsys.readouterr().err


def test_a_gateway_loads_no_engine() -> None:
    code = (
        "import sys; import octavo.gateway.run, octavo.cli.gateway; "
        "print([n for n in sys.modules if n in ('torch', 'transformers', 'tokenizers', 'numpy', "
        "'sqlalchemy', 'aiohttp') or n.startswith(('octavo.engine', 'octavo.runner', "
        "'octavo.serving'))])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


async def test_signals(tmp_path: Path) -> None:
    """SIGHUP reads the configuration anew; SIGTERM lets a stream end, and refuses newcomers."""
    async with FakeUpstream() as fake:
        fake.delay_s = 0.2
        path, port = config(tmp_path, fake.url), free_port()
        url = f"http://127.0.0.1:{port}"
        with process("gateway", "--config", str(path), "--port", str(port)) as popen:
            await answers(f"{url}/ready", popen)
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10) as client:
                path.write_text(path.read_text().replace("{ok: {}, ", "{new: {}, "))
                popen.send_signal(signal.SIGHUP)
                await until(lambda: client.get("/v1/models"), lambda a: "new" in a.text)
                path.write_text("backends: 7")
                popen.send_signal(signal.SIGHUP)
                refused_line = 'result="refused"} 1'
                await until(lambda: client.get("/metrics"), lambda a: refused_line in a.text)
                body = CHAT | {"stream": True}
                stream = asyncio.ensure_future(client.post("/v1/chat/completions", json=body))
                async with asyncio.timeout(5):
                    while not fake.seen:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                popen.send_signal(signal.SIGTERM)
                await until(lambda: client.get("/ready"), lambda a: a.status_code == 503)
                refused = await client.post("/v1/chat/completions", json=CHAT)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "shutting_down"
                assert (await stream).text.endswith("data: [DONE]\n\n")
            assert await asyncio.to_thread(popen.wait, 10) == 0
            log = await asyncio.to_thread(popen.stderr.read)  # type: ignore[union-attr]
            assert "Traceback" not in log
            assert "the configuration is wrong" in log


async def test_a_second_signal_ends_streams_at_once(tmp_path: Path) -> None:
    async with FakeUpstream() as fake:
        fake.delay_s = 30.0
        path, port = config(tmp_path, fake.url), free_port()
        path.write_text(path.read_text().replace("0.5", "60").replace("total: 2", "total: 60"))
        url = f"http://127.0.0.1:{port}"
        with process("gateway", "--config", str(path), "--port", str(port)) as popen:
            await answers(f"{url}/health", popen)
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10) as client:
                hanging = asyncio.ensure_future(client.post("/v1/chat/completions", json=CHAT))
                async with asyncio.timeout(5):
                    while not fake.seen:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                popen.send_signal(signal.SIGINT)
                await asyncio.sleep(0.2)
                popen.send_signal(signal.SIGINT)
                answer = await hanging
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "shutting_down"
            assert await asyncio.to_thread(popen.wait, 10) == 0


@pytest.mark.slow
async def test_an_engine_behind_a_gateway(tmp_path: Path, tiny_llama: TinyLlama) -> None:
    model = str(tiny_llama())
    path = tmp_path / "gateway.yaml"
    path.write_text(f"""
server: {{port: {free_port()}}}
keys: {{required: false}}
ledger: {{url: {tmp_path}/ledger.db}}
backends:
  engine:
    url: unix:{tmp_path}/engine.sock
    kind: octavo
    metered: true
    probe: {{interval: 0.2}}
    models: {{tiny: {{context_length: 256, price: {{device_hour: 1}}}}}}
""")
    url = f"http://127.0.0.1:{load_config(path).server.port}"
    flags = ("--served-model-name", "tiny", "--device", "cpu", "--kv-cache-memory", "16M")
    with process("serve", model, *flags, "--gateway-config", str(path)) as popen:
        await answers(f"{url}/ready", popen, within_s=120)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            body = {"model": "tiny", "prompt": "a", "max_tokens": 3, "ignore_eos": True}
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 3
            assert answer.headers["x-octavo-target"] == "engine/tiny"
        popen.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(popen.wait, 30) == 0
    assert not (tmp_path / "engine.sock").exists()
    from octavo.ledger.store import open_ledger

    with open_ledger(f"{tmp_path}/ledger.db") as ledger:
        (usage,) = ledger.totals(["model"], 0, 2**62)
        assert usage.num_requests == 1  # by the engine alone: the backend is metered


def test_which_backend_is_the_engine(tmp_path: Path) -> None:
    path = config(tmp_path, "unix:/tmp/one.sock")
    loaded = load_config(path)
    assert backend_of(loaded, ("ok",), path).address.socket == "/tmp/one.sock"
    with pytest.raises(ConfigError, match="no backend stands for this engine"):
        backend_of(loaded, ("other",), path)


@pytest.mark.parametrize("flags", [("--port", "1"), ("--api-key", "k"), ("--uds", "x")])
def test_flags_that_are_the_gateways(
    tmp_path: Path, model: str, flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, "unix:/tmp/one.sock")
    assert main(["serve", model, "--gateway-config", str(path), *flags]) == 1
    assert f"{flags[0]} is for the gateway to say" in capsys.readouterr().err
