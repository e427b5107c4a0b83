"""`octavo run-batch` against a real server on a socket, and with a model of its own."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from octavo.cli.main import main
from octavo.server import batch_file
from tests.cli.test_main import ROOT
from tests.server.conftest import RunningServer, running_servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import TinyLlama

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with running_servers() as start:
        yield start()


def line(custom_id: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "hello", "max_tokens": 8},
        "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 8},
        "/v1/responses": {"input": "hello", "max_output_tokens": 8},
    }
    whole = {"model": "fake", **kinds.get(url, {}), **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": whole}


def write(path: Path, *lines: Any) -> Path:
    texts = [text if isinstance(text, str) else json.dumps(text) for text in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def read(path: Path) -> dict[Any, dict[str, Any]]:
    """The results by custom id, or by line where they have none."""
    results = [json.loads(text) for text in path.read_text().splitlines()]
    keyed = {r["custom_id"] or r["error"]["line"]: r for r in results}
    assert len(keyed) == len(results)
    assert len({r["id"] for r in results}) == len(results)
    return keyed


def run(source: Path, target: Path, *more: str) -> int:
    return main(["run-batch", "-i", str(source), "-o", str(target), *more])


def text_of(result: dict[str, Any]) -> str:
    body = result["response"]["body"]
    if body["object"] == "response":
        return str(body["output"][0]["content"][0]["text"])
    choice = body["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def test_every_line_gets_its_result(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(
        tmp_path / "in.jsonl",
        line("chat", "/v1/chat/completions"),
        line("text"),
        "",
        line("response", "/v1/responses"),
        line("refused", temperature=-1),
        line("other model", model="gpt-5"),
        "nonsense",
        line("unknown", "/v1/unknown"),
        line("streamed", stream=True),
        line("text"),
    )
    target = tmp_path / "out.jsonl"
    assert run(source, target, "--url", server.url, "--json") == 3
    results = read(target)
    assert text_of(results["text"]) == server.completion().json()["choices"][0]["text"]
    chat = server.chat().json()["choices"][0]["message"]["content"]
    assert text_of(results["chat"]) == text_of(results["response"]) == chat
    assert results["text"]["error"] is None
    assert results["text"]["response"]["request_id"]
    assert results["refused"]["response"]["status_code"] == 400
    assert results["refused"]["response"]["body"]["error"]["param"] == "temperature"
    assert results["other model"]["response"]["status_code"] == 404
    errors = {number: results[number]["error"] for number in (7, 8, 9, 10)}
    assert all(results[number]["response"] is None for number in errors)
    assert "not valid JSON" in errors[7]["message"]
    assert "url" in errors[8]["message"]
    assert "body.stream" in errors[9]["message"]
    assert errors[10]["code"] == "duplicate_custom_id"
    summary = json.loads(capsys.readouterr().out)
    assert (summary["total"], summary["completed"], summary["failed"]) == (9, 3, 6)
    assert (summary["left"], summary["output_tokens"]) == (0, 24)
    # Everything has its result, so that nothing is asked again.
    num_asked, before = len(server.engine.requests), target.read_bytes()
    assert run(source, target, "--url", server.url, "--json") == 0
    assert len(server.engine.requests) == num_asked
    assert target.read_bytes() == before
    assert json.loads(capsys.readouterr().out)["skipped"] == 9


def test_it_goes_on_after_a_torn_end(server: RunningServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(line(str(n)) for n in range(5)))
    target = tmp_path / "out.jsonl"
    assert run(source, target, "--url", f"{server.url}/v1") == 0
    whole = target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(whole[:2]) + whole[2][:40])
    server.engine.requests.clear()
    assert run(source, target, "--url", server.url, "--concurrency", "1") == 0
    assert len(server.engine.requests) == 3
    assert set(read(target)) == {"0", "1", "2", "3", "4"}


def test_concurrency_is_bounded(server: RunningServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(line(str(n)) for n in range(12)))
    server.engine.delay = 0.002
    assert run(source, tmp_path / "out", "--url", server.url, "--concurrency", "3") == 0
    assert server.engine.most_open == 3


def test_a_server_that_is_away_is_waited_for(server: RunningServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", line("a"))
    server.engine.is_alive = False
    back = threading.Timer(0.4, setattr, (server.engine, "is_alive", True))
    back.start()
    assert run(source, tmp_path / "out", "--url", server.url) == 0
    back.join()
    assert text_of(read(tmp_path / "out")["a"])


def test_a_server_that_stays_away_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_file, "PATIENCE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    source = write(tmp_path / "in.jsonl", line("a"))
    assert run(source, tmp_path / "out", "--url", f"http://127.0.0.1:{port}") == 1
    assert "takes no requests" in capsys.readouterr().err
    assert (tmp_path / "out").read_bytes() == b""


def test_what_cannot_be_done_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], server: RunningServer
) -> None:
    source = write(tmp_path / "in.jsonl", line("a"))
    url = ("--url", server.url)

    def refused(*args: Any) -> str:
        assert run(*args) == 1
        return capsys.readouterr().err

    assert "MODEL" in refused(source, tmp_path / "out")
    assert "MODEL" in refused(source, tmp_path / "out", "smollm2", *url)
    assert "cannot read" in refused(tmp_path / "none", tmp_path / "out", *url)
    assert "cannot write" in refused(source, tmp_path / "none" / "out", *url)
    assert "must not be the input" in refused(source, source, *url)
    assert "--concurrency" in refused(source, tmp_path / "out", *url, "--concurrency", "0")
    assert "not a file" in refused(source, "/dev/null", *url)
    other = write(tmp_path / "other", {"custom_id": "a"})
    assert "something else" in refused(source, other, *url)
    assert other.read_text() == '{"custom_id": "a"}\n'
    with (tmp_path / "out").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another run" in refused(source, tmp_path / "out", *url)
    assert not server.engine.requests


def test_a_full_disk_ends_the_run(
    server: RunningServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write(tmp_path / "in.jsonl", line("a"), line("b"))
    target = tmp_path / "out"
    write_for_real, room = os.write, 1000

    def write_some(fd: int, data: bytes) -> int:
        nonlocal room
        if os.fstat(fd).st_ino != target.stat().st_ino:
            return write_for_real(fd, data)
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        num_written = write_for_real(fd, data[:room])
        room -= num_written
        return num_written

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write_some)
        assert run(source, target, "--url", server.url, "--concurrency", "1") == 1
    assert "No space" in capsys.readouterr().err
    assert len(read(target)) == 1, "what was not written to its end is cut off"
    assert run(source, target, "--url", server.url) == 0
    assert len(read(target)) == 2


def test_ctrl_c_leaves_whole_lines(server: RunningServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(line(str(n)) for n in range(40)))
    target = tmp_path / "out.jsonl"
    server.engine.delay = 0.01
    command = ["-m", "octavo.cli.main", "run-batch", "-i", str(source), "-o", str(target)]
    process = subprocess.Popen(
        [sys.executable, *command, "--url", server.url, "--concurrency", "2", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not (target.exists() and target.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "the same command goes on" in err
    done = read(target)
    summary = json.loads(out)
    assert 0 < len(done) == summary["completed"] < 40
    assert summary["left"] == 40 - len(done)
    server.wait_until_idle()
    server.engine.delay = 0.0
    assert run(source, target, "--url", server.url) == 0
    assert len(read(target)) == 40


def test_the_api_key_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in.jsonl", line("a"))
    with running_servers() as start:
        server = start(api_keys=("sk-1",))
        assert run(source, tmp_path / "1", "--url", server.url) == 3
        assert run(source, tmp_path / "2", "--url", server.url, "--api-key", "sk-1") == 0
        monkeypatch.setenv("OCTAVO_API_KEY", "sk-1")
        assert run(source, tmp_path / "3", "--url", server.url) == 0


def test_a_model_in_this_process(tmp_path: Path, tiny_llama: TinyLlama) -> None:
    from octavo.llm import LLM
    from octavo.types import SamplingParams

    path = tiny_llama()
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 6}
    prompts = ["one", "two", "three"]
    source = write(
        tmp_path / "in.jsonl",
        *(line(prompt, prompt=prompt, **asked) for prompt in prompts),
        line("r", "/v1/responses", model="tiny"),
    )
    flags = ("--served-model-name", "tiny", "--num-threads", "1", "--kv-cache-memory", "4MiB")
    target = tmp_path / "out.jsonl"
    assert run(source, target, str(path), *flags) == 0
    results = read(target)
    llm = LLM(str(path), num_threads=1, kv_cache_memory=4 * 2**20)
    try:
        params = SamplingParams(temperature=0, max_tokens=6)
        expected = [output.outputs[0].text for output in llm.generate(prompts, params)]
    finally:
        llm.close()
    assert [text_of(results[prompt]) for prompt in prompts] == expected
    assert results["r"]["response"]["body"]["usage"]["output_tokens"] == 8
    # With nothing left to do, not even the engine is started.
    begin = time.monotonic()
    assert run(source, target, str(path), *flags) == 0
    assert time.monotonic() - begin < 1
