from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from octavo.cli.main import main
from tests.cli.conftest import FakeLLM
from tests.cli.test_main import ROOT, octavo_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.bench.fake_server import Fake

_CHILD = """\
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C becomes a signal
from octavo.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


class Terminal:
    """`octavo chat` on a pseudo-terminal."""

    def __init__(self, *args: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, "chat", *args],
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm", "INPUTRC": os.devnull},
        )
        os.close(slave)
        self._seen = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def expect(self, pattern: str, timeout: float = 20.0) -> str:
        """Wait for it; returns everything up to its end, and forgets that."""
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self._seen)):
            ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            assert ready, f"{pattern!r} did not come; last seen {self._seen[-300:]!r}"
            self._seen += os.read(self._master, 65536).decode()
        text, self._seen = self._seen[: match.end()], self._seen[match.end() :]
        return text

    def wait(self) -> int:
        return self.process.wait(20)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(fake: Fake) -> Iterator[Terminal]:
    fake.num_tokens = 3
    terminal = Terminal("--url", fake.url, "--system", "Be brief.", "--temperature", "0")
    terminal.expect(">>> ")
    yield terminal
    terminal.close()


def roles(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in body["messages"]]


def test_a_conversation(fake: Fake, terminal: Terminal) -> None:
    terminal.type("hello\r")
    terminal.expect(r" tok tok tok\r\n")
    terminal.expect(">>> ")
    terminal.type("and?\r")
    terminal.expect(r" tok tok tok\r\n")
    terminal.expect(">>> ")
    assert roles(fake.bodies[1]) == [
        ("system", "Be brief."),
        ("user", "hello"),
        ("assistant", " tok tok tok"),
        ("user", "and?"),
    ]
    assert fake.bodies[1]["temperature"] == 0
    assert fake.bodies[1]["max_tokens"] == 1024
    assert fake.bodies[1]["model"] == "fake-model"
    terminal.type("\x04")
    assert terminal.wait() == 0


def test_answers_stream(fake: Fake, terminal: Terminal) -> None:
    fake.num_tokens, fake.itl_s = 5, 0.3
    terminal.type("hello\r")
    terminal.expect(" tok")
    begin = time.monotonic()
    terminal.expect(r"tok\r\n")
    assert time.monotonic() - begin > 0.6  # the first was here long before the last


def test_ctrl_c_stops_the_answer_and_then_the_program(fake: Fake, terminal: Terminal) -> None:
    fake.num_tokens, fake.itl_s = 2000, 0.02
    terminal.type("hello\r")
    terminal.expect(" tok tok tok")
    terminal.type("\x03")
    terminal.expect(r"\(stopped\)")
    terminal.expect(">>> ")
    deadline = time.monotonic() + 10
    while not fake.num_aborted:  # the server saw the connection close
        assert time.monotonic() < deadline
        time.sleep(0.02)
    fake.num_tokens = 2
    terminal.type("again\r")
    terminal.expect(r" tok tok\r\n")
    terminal.expect(">>> ")
    sent = roles(fake.bodies[-1])
    assert [role for role, _ in sent] == ["system", "user", "assistant", "user"]
    assert sent[2][1].startswith(" tok tok tok")
    for _ in range(3):
        # Python's readline looks for signals before it waits for keys: one that comes between the
        # two is seen with the next key only. A person does not hit that moment, a test may.
        terminal.type("\x03")
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert terminal.process.wait(5) == 0
            break
    assert terminal.process.returncode == 0


def test_ctrl_c_before_the_first_token(fake: Fake, terminal: Terminal) -> None:
    fake.hang = True
    terminal.type("hello\r")
    deadline = time.monotonic() + 10
    while not fake.bodies:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    terminal.type("\x03")
    terminal.expect(r"\(stopped\)")
    terminal.expect(">>> ")
    fake.hang = False
    terminal.type("again\r")
    terminal.expect(r" tok\r\n")
    assert roles(fake.bodies[-1]) == [("system", "Be brief."), ("user", "again")]


def test_commands(fake: Fake, terminal: Terminal, tmp_path: Path) -> None:
    def command(line: str, answer: str) -> None:
        terminal.type(line + "\r")
        terminal.expect(answer)
        terminal.expect(">>> ")

    command("/stats", r"\(no answer yet\)")
    command("/regenerate", r"\(no question yet\)")
    command("hello", r" tok tok tok\r\n")
    command("/stats", r"7 prompt tokens, 3 output tokens, first token after \d+ ms")
    command("/regenerate", r" tok tok tok\r\n")
    assert roles(fake.bodies[-1]) == roles(fake.bodies[-2])
    command("/system", "Be brief.")
    command("/system Be kind.", "")
    command("/help", "/regenerate")
    command("/rest", r"did you mean /reset\?")
    path = tmp_path / "saved.json"
    command(f"/save {path}", "saved to")
    assert json.loads(path.read_text()) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": " tok tok tok"},
    ]
    command(f"/save {path}", "exists already")
    command("/save /no/such/folder/f", "cannot write")
    command("/reset", "forgotten")
    command(" /slash", r" tok tok tok\r\n")
    assert roles(fake.bodies[-1]) == [("system", "Be kind."), ("user", "/slash")]
    terminal.type("/exit\r")
    assert terminal.wait() == 0


def test_lines_are_remembered(fake: Fake, terminal: Terminal, home: Path) -> None:
    terminal.type("a line to keep\r")
    terminal.expect(r" tok tok tok\r\n")
    terminal.expect(">>> ")
    terminal.type("\x1b[A")
    terminal.expect("a line to keep")
    terminal.type("\r")
    terminal.expect(r" tok tok tok\r\n")
    assert roles(fake.bodies[-1])[-1] == ("user", "a line to keep")
    terminal.expect(">>> ")
    terminal.type("\x04")
    assert terminal.wait() == 0
    assert "a line to keep" in (home / "chat_history").read_text()
    assert (home / "chat_history").stat().st_mode & 0o77 == 0
    again = Terminal("--url", fake.url)
    again.expect(">>> ")
    again.type("\x1b[A")
    again.expect("a line to keep")
    again.close()


def test_errors_leave_the_conversation_alive(fake: Fake, terminal: Terminal) -> None:
    fake.fail_every, fake.fail_status = 1, 400
    terminal.type("hello\r")
    terminal.expect(r"\(error: overloaded\)")
    terminal.expect(">>> ")
    fake.fail_every, fake.cut_after = 0, 1
    terminal.type("hello\r")
    terminal.expect(r"\(error: [^)]* does not answer: ")
    terminal.expect(">>> ")
    fake.cut_after, fake.error_after = None, 1
    terminal.type("hello\r")
    terminal.expect(r"\(error: the engine died\)")
    terminal.expect(">>> ")
    fake.error_after = None
    terminal.type("hello\r")
    terminal.expect(r" tok tok tok\r\n")


def test_pipes(fake: Fake) -> None:
    fake.num_tokens = 2
    result = octavo_command("chat", "--url", fake.url, input="one\n\n/stats\ntwo")
    assert result.returncode == 0
    first, stats, second = result.stdout.splitlines()
    assert first == second == " tok tok"
    assert stats.startswith("7 prompt tokens, 2 output tokens")
    assert len(fake.bodies) == 2
    fake.fail_every = 1
    result = octavo_command("chat", "--url", fake.url, input="one\n")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "(error: overloaded)\n"


def test_keys_and_models(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    fake.api_key = "sesame"
    assert main(["chat", "--url", fake.url]) == 1
    assert capsys.readouterr().err == f"octavo: error: {fake.url}/v1: wrong key\n"
    assert main(["chat", "--url", fake.url, "--api-key", "sesame"]) == 0
    monkeypatch.setenv("OCTAVO_API_KEY", "sesame")
    assert main(["chat", "fake-model", "--url", fake.url]) == 0
    assert main(["chat", "other", "--url", fake.url]) == 1
    assert "does not serve other; it serves fake-model" in capsys.readouterr().err
    assert main(["chat", "--url", "http://127.0.0.1:9"]) == 1
    assert "no server answers at http://127.0.0.1:9/v1" in capsys.readouterr().err


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.cli.conversation.DEFAULT_URL", "http://127.0.0.1:9/v1")


@pytest.mark.usefixtures("no_server")
class TestInProcess:
    def chat(self, monkeypatch: pytest.MonkeyPatch, lines: str, *args: str) -> int:
        read, write = os.pipe()
        os.write(write, lines.encode())
        os.close(write)
        with os.fdopen(read) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            return main(["chat", *args])

    def test_without_a_model(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.chat(monkeypatch, "") == 1
        assert "octavo chat MODEL" in capsys.readouterr().err

    def test_a_flag_of_the_engine_asks_for_a_model_here(
        self,
        fake: Fake,
        llms: list[FakeLLM],
        model: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("octavo.cli.conversation.DEFAULT_URL", fake.url)
        assert self.chat(monkeypatch, "", model, "--max-num-seqs", "1") == 0
        assert llms[0].options["max_num_seqs"] == 1
        assert fake.num_connections == 0
        for words in (["--max-num-seqs", "1"], [model, "--url", fake.url, "--seed", "1"]):
            assert self.chat(monkeypatch, "", *words) == 1
            assert "the engine's flags are for a MODEL" in capsys.readouterr().err

    def test_what_answers_may_be_something_else(
        self,
        fake: Fake,
        llms: list[FakeLLM],
        model: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("octavo.cli.conversation.DEFAULT_URL", f"{fake.url}/nothing")
        assert self.chat(monkeypatch, "", model) == 0
        assert len(llms) == 1
        assert self.chat(monkeypatch, "") == 1
        assert self.chat(monkeypatch, "", model, "--url", f"{fake.url}/nothing") == 1
        assert "does not list models" in capsys.readouterr().err

    def test_turns(
        self,
        llms: list[FakeLLM],
        model: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert self.chat(monkeypatch, "Hi\nAnd?\n", model, "--max-tokens", "9") == 0
        assert capsys.readouterr().out == "Hello.\nHello.\n"
        [llm] = llms
        assert [len(messages) for messages, _ in llm.asked] == [1, 3]
        assert llm.asked[0][1].max_tokens == 9
        assert llm.asked[0][1].temperature == 0.25
        assert llm.is_closed

    def test_ctrl_c_ends_the_answer_alone(
        self,
        llms: list[FakeLLM],
        model: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def interrupt(index: int) -> None:
            if index == 0:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(FakeLLM, "after_word", staticmethod(interrupt))
        before = signal.getsignal(signal.SIGINT)
        assert self.chat(monkeypatch, "Hi\nAnd?\n", model) == 0
        captured = capsys.readouterr()
        assert captured.out == "Hello\nHello\n"
        assert captured.err.count("(stopped)") == 2
        [llm] = llms
        assert llm.num_broken_off == 2  # so that the engine aborts
        assert len(llm.asked) == 2
        assert signal.getsignal(signal.SIGINT) is before

    def test_a_failing_engine(
        self,
        llms: list[FakeLLM],
        model: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(FakeLLM, "finish_reason", "error")
        assert self.chat(monkeypatch, "Hi\n", model) == 1
        assert "(error: out of paper)" in capsys.readouterr().err
        assert llms[0].is_closed
