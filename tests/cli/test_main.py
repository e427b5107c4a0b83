from __future__ import annotations

import resource
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.cli import main as main_module
from octavo.cli.main import COMMANDS, main
from octavo.errors import ConfigError, EngineError, InvalidRequestError

ROOT = Path(octavo.__file__).parents[1]
HEAVY = {"torch", "numpy", "httpx", "rich", "starlette", "uvicorn", "huggingface_hub", "asyncio"}


def octavo_command(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octavo.cli.main", *args]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "octavo", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"octavo {octavo.__version__}\n")
    done = subprocess.run([*command[:-1], "nonsense"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 2


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(5):
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = octavo_command("--help")
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime)
        assert result.returncode == 0
        first_words = [line.split()[:1] for line in result.stdout.splitlines()]
        assert all([name] in first_words for name in COMMANDS)
    assert min(seconds) < 0.3, seconds


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from octavo.cli.main import COMMANDS, build_parser; build_parser(COMMANDS);"
        "print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not HEAVY & set(result.stdout.split())


@pytest.mark.parametrize("words", [[name] for name in COMMANDS] + [["bench", "serve"]])
def test_every_command_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*words, "--help"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: octavo {' '.join(words)} ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"octavo {octavo.__version__}\n"


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "hint"), [("serv", "did you mean `octavo serve`?"), ("xyzzy", "commands: serve, chat")]
)
def test_unknown_commands(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"octavo: error: there is no command {word!r}; {hint}" in err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A command `probe` that raises what the test wants."""
    what = types.SimpleNamespace(error=None)

    def run(_: object) -> int:
        raise what.error

    def add_parser(subparsers: Any) -> None:
        subparsers.add_parser("probe").set_defaults(run=run)

    module = types.ModuleType("octavo.cli.probe")
    module.add_parser = add_parser  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "octavo.cli.probe", module)
    monkeypatch.setitem(main_module.COMMANDS, "probe", "probe")
    return what


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("no\nsuch  x"),
        InvalidRequestError("no such x"),
        EngineError("no such x"),
    ],
)
def test_errors_are_one_line(
    error: Exception, failing: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    failing.error = error
    assert main(["probe"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "octavo: error: no such x\n"
    assert captured.out == ""


def test_ctrl_c(failing: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    failing.error = KeyboardInterrupt()
    assert main(["probe"]) == 130
    assert capsys.readouterr().err == ""


def test_bugs_keep_their_traceback(failing: types.SimpleNamespace) -> None:
    failing.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["probe"])


def test_a_closed_pipe_is_quiet() -> None:
    # The reader is gone before the command has written anything.
    code = "import sys, time; time.sleep(0.5); from octavo.cli.main import main; sys.exit(main())"
    # `models` prints its table itself; argparse would swallow the error of an unbuffered stream.
    process = subprocess.Popen(
        [sys.executable, "-c", code, "models", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        err = process.stderr.read()
    assert process.wait(30) == 141
    assert err == b""
