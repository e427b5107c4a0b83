from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from octavo.config import EngineConfig
from octavo.engine.channel import EngineChannel, ServerChannel, new_address, remove_address
from octavo.engine.messages import (
    AbortRequests,
    AddRequest,
    EngineReady,
    EngineStarted,
    Shutdown,
    StepOutputs,
)
from octavo.engine.process import run_engine_loop
from octavo.engine.spawn import EngineProcess, describe_exit
from octavo.types import SamplingParams
from tests.engine.fake_core import FakeCore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.engine.messages import FromEngine, TokenOutput

ROOT = Path(__file__).parents[2]


@contextmanager
def loop_in_thread(core: FakeCore) -> Iterator[ServerChannel]:
    """`run_engine_loop` with this core, in a thread; ended by `Shutdown` if it still runs."""
    address = new_address()
    server, engine = ServerChannel(address), EngineChannel(address)
    thread = threading.Thread(target=run_engine_loop, args=(core, engine))
    thread.start()
    try:
        assert engine.send(EngineStarted(0.0))
        assert next_message(server) == EngineStarted(0.0)
        yield server
    finally:
        server.send(Shutdown())
        thread.join(5)
        assert not thread.is_alive()
        engine.close()
        server.close()
        remove_address(address)
        assert not Path(address.removeprefix("ipc://")).parent.exists()


def next_message(channel: ServerChannel, timeout_s: float = 5.0) -> FromEngine | None:
    message = channel.receive()
    if message is None:
        channel.wait(timeout_s)
        message = channel.receive()
    return message


def request(request_id: str, max_tokens: int, prompt: tuple[int, ...] = (5,)) -> AddRequest:
    return AddRequest(request_id, list(prompt), SamplingParams(max_tokens=max_tokens), [])


def outputs_until_end(channel: ServerChannel, num_requests: int) -> list[StepOutputs]:
    """Messages until so many requests have ended."""
    messages: list[StepOutputs] = []
    while num_requests:
        message = next_message(channel)
        assert isinstance(message, StepOutputs)
        messages.append(message)
        num_requests -= sum(output.finish_reason is not None for output in message.outputs)
    return messages


def tokens(messages: list[StepOutputs], request_id: str) -> list[int]:
    mine: list[TokenOutput] = [o for m in messages for o in m.outputs if o.request_id == request_id]
    return [token_id for output in mine for token_id in output.token_ids]


def test_one_message_per_step_and_what_came_together_starts_together() -> None:
    core = FakeCore(step_s=0.05)
    with loop_in_thread(core) as channel:
        channel.send(request("first", 4))
        time.sleep(0.02)
        for index in range(3):
            channel.send(request(f"r{index}", 2))
        messages = outputs_until_end(channel, 4)
        assert [len(message.outputs) for message in messages] == [1, 4, 4, 1]
        assert tokens(messages, "first") == [6, 7, 8, 9]
        assert tokens(messages, "r2") == [6, 7]
        assert [message.stats.num_steps for message in messages] == [1, 2, 3, 4]
        assert next_message(channel, 0.1) is None  # no work, no messages
        assert core.num_steps == 4


def test_an_abort_shows_in_the_stats_without_a_step() -> None:
    with loop_in_thread(FakeCore(step_s=0.03)) as channel:
        channel.send(request("r", 1000))
        message = next_message(channel)
        assert isinstance(message, StepOutputs)
        assert message.stats.num_running == 1
        channel.send(AbortRequests(["r", "unknown"]))
        while message.stats.num_running:
            message = next_message(channel)
            assert isinstance(message, StepOutputs)
        assert message.outputs == []


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 9, b"\x92\xa3add\x01", b"\x91\xa4what", b"\xc0", b"\x80"]
)
def test_malformed_messages_are_skipped(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with loop_in_thread(FakeCore()) as channel:
        channel.socket.send(data)
        channel.send(request("r", 3))
        assert tokens(outputs_until_end(channel, 1), "r") == [6, 7, 8]
        assert "malformed" in caplog.text


def test_refused_requests_end_and_nobody_else_does(caplog: pytest.LogCaptureFixture) -> None:
    with loop_in_thread(FakeCore(step_s=0.01)) as channel:
        channel.send(request("good", 3))
        channel.send(request("refused", 3, (13,)))
        channel.send(request("bug", 3, (14,)))
        messages = outputs_until_end(channel, 3)
        errors = {o.request_id: o.error for m in messages for o in m.outputs if o.error}
        assert errors["refused"] == "thirteen is refused"
        assert "fourteen" in errors["bug"]
        assert tokens(messages, "good") == [6, 7, 8]


def test_only_this_user_may_enter_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = new_address()
    folder = Path(address.removeprefix("ipc://")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    remove_address(address)
    assert not folder.exists()

    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    address = new_address()
    try:
        ServerChannel(address).close()
    finally:
        remove_address(address)
    assert list(deep.iterdir()) == []


def test_interrupts_are_the_parents_and_the_folder_is_short_lived() -> None:
    process = EngineProcess("tests.engine.fake_core:build", EngineConfig(model="fake"))
    folder = Path(process.channel.address.removeprefix("ipc://")).parent
    try:
        assert isinstance(next_message(process.channel), EngineStarted)
        assert isinstance(next_message(process.channel), EngineReady)
        process.forget_address()
        assert not folder.exists()
        os.kill(process.pid, signal.SIGINT)
        process.channel.send(request("r", 3))
        assert tokens(outputs_until_end(process.channel, 1), "r") == [6, 7, 8]
        process.channel.send(Shutdown())
    finally:
        assert process.stop(timeout_s=5) == 0
    assert not folder.exists()


PARENT = """
import sys, time
from octavo.config import EngineConfig
from octavo.engine.spawn import EngineProcess
process = EngineProcess("tests.engine.fake_core:" + sys.argv[1], EngineConfig(model="fake"))
process.channel.wait()
print(process.pid, flush=True)
time.sleep(1000)
"""


def is_running(pid: int) -> bool:
    """Whether the process lives; a zombie that nobody has collected yet does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("builder", ["build", "build_slowly"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_never_outlives_its_parent(builder: str, signum: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, builder], stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.send_signal(signum)
        parent.wait()
        deadline = time.monotonic() + 2
        while is_running(child):
            assert time.monotonic() < deadline, "the child lives on"
            time.sleep(0.01)


def test_exits_in_words() -> None:
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-9) == "signal 9 (SIGKILL)"
    assert describe_exit(-120) == "signal 120"
