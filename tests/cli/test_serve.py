from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

import pytest

from octavo.cli import pull
from octavo.cli.main import main
from octavo.cli.serve import is_loopback
from octavo.config import EngineConfig, ServerConfig, api_key_digest, default_ledger

if TYPE_CHECKING:
    from pathlib import Path

Launched = list[tuple[EngineConfig, ServerConfig]]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    """What `octavo serve` would have launched; no server starts."""
    calls: Launched = []

    def serve(engine: EngineConfig, server: ServerConfig) -> int:
        calls.append((engine, server))
        return 3

    module = types.ModuleType("octavo.launch")
    module.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "octavo.launch", module)
    monkeypatch.setattr("octavo.observability.logs.configure_logs", lambda level: None)
    return calls


def test_defaults(launched: Launched, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", model]) == 3
    server = ServerConfig(served_model_names=(model,), ledger=default_ledger())
    assert launched == [(EngineConfig(model=model), server)]
    assert capsys.readouterr().err == ""


def test_flags(launched: Launched, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_API_KEY", "c, d")
    levels: list[str] = []
    monkeypatch.setattr("octavo.observability.logs.configure_logs", levels.append)
    flags = "--host 0.0.0.0 --port 0 --api-key a --api-key b --log-level debug --max-num-seqs 4"
    flags += " --max-num-queued-requests 7 --watchdog-timeout 2.5 --max-engine-restarts 0"
    assert main(["serve", model, *flags.split(), "--served-model-name", "x", "y"]) == 3
    [(engine, server)] = launched
    assert engine == EngineConfig(model=model, max_num_seqs=4)
    assert server == ServerConfig(
        ledger=default_ledger(),
        host="0.0.0.0",
        port=0,
        api_key_digests=tuple(map(api_key_digest, "abcd")),
        served_model_names=("x", "y"),
        log_level="debug",
        max_num_queued_requests=7,
        watchdog_timeout=2.5,
        max_engine_restarts=0,
    )
    assert levels == ["debug"]


def test_flags_of_answers(
    launched: Launched, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    formats = ["--tool-call-parser", "hermes", "--reasoning-parser", "none"]
    assert main(["serve", model, *formats]) == 3
    ((_, server),) = launched
    assert (server.tool_call_parser, server.reasoning_parser) == ("hermes", "none")
    assert not server.trust_request_chat_template
    assert main(["serve", model, "--trust-request-chat-template"]) == 3
    assert launched[-1][1].trust_request_chat_template
    with pytest.raises(SystemExit):
        main(["serve", model, "--reasoning-parser", "hermes"])
    assert "invalid choice: 'hermes'" in capsys.readouterr().err


def test_flags_of_the_wire(launched: Launched, model: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a\n# none\nb\n")
    flags = f"--api-key a --api-key-file {tmp_path / 'keys'} --uds /run/x.sock"
    flags += " --ssl-certfile c.pem --ssl-keyfile k.pem --max-body-bytes 1MiB"
    flags += " --max-header-bytes 8k --sse-keep-alive 0 --shutdown-timeout 2.5"
    flags += " --allowed-origins https://a,https://b --allow-credentials --allowed-methods GET"
    args = ["serve", model, *flags.split(), "--allowed-headers", '["X-A", "X-B"]']
    assert main(args) == 3
    [(_, server)] = launched
    assert server == ServerConfig(
        ledger=default_ledger(),
        uds="/run/x.sock",
        ssl_certfile="c.pem",
        ssl_keyfile="k.pem",
        api_key_digests=tuple(map(api_key_digest, "ab")),
        allowed_origins=("https://a", "https://b"),
        allowed_methods=("GET",),
        allowed_headers=("X-A", "X-B"),
        allow_credentials=True,
        served_model_names=(model,),
        max_body_bytes=2**20,
        max_header_bytes=8192,
        sse_keep_alive=0.0,
        shutdown_timeout=2.5,
    )


def test_an_open_door_is_a_loud_warning(
    launched: Launched, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["serve", model, "--host", "0.0.0.0"])
    assert "WARNING: 0.0.0.0:8000 can be reached" in capsys.readouterr().err
    main(["serve", model, "--host", "0.0.0.0", "--api-key", "k"])
    main(["serve", model, "--host", "::1"])
    main(["serve", model, "--host", "0.0.0.0", "--uds", "x.sock"])
    assert capsys.readouterr().err == ""
    assert len(launched) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], "--port must be in 0..65535"),
        (["--api-key", ""], "--api-key must not be empty"),
        (["--api-key", "ä"], "an API key must be printable ASCII"),
        (["--api-key-file", "/no/such/file"], "cannot read the API keys in /no/such/file"),
        (["--ssl-keyfile", "k.pem"], "--ssl-keyfile needs --ssl-certfile"),
        (["--allow-credentials"], "--allow-credentials needs --allowed-origins"),
        (["--shutdown-timeout", "-1"], "--shutdown-timeout must be at least 0"),
        (["--served-model-name", ""], "--served-model-name must not be empty"),
        (["--max-num-seqs", "0"], "--max-num-seqs must be at least 1"),
    ],
)
def test_bad_flags(
    launched: Launched,
    model: str,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", model, *flags]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"octavo: error: {message}")
    assert err.count("\n") == 1
    assert launched == []


@pytest.mark.parametrize("names", ["[1]", '["a"', '[["a"]]'])
def test_names_that_are_no_list(launched: Launched, model: str, names: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["serve", model, "--allowed-origins", names])
    assert exit_.value.code == 2
    assert launched == []


def test_pull_when_asked(
    launched: Launched,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pulled: list[str] = []
    late = tmp_path / "late.gguf"

    def run(args: types.SimpleNamespace) -> int:
        pulled.extend(args.names)
        late.touch()
        print(late)
        return 0

    monkeypatch.setattr(pull, "run", run)
    assert main(["serve", str(late)]) == 1
    assert "no such file" in capsys.readouterr().err
    assert main(["serve", str(late), "--pull"]) == 3
    assert pulled == [str(late)]
    assert capsys.readouterr().out == ""
    assert main(["serve", model, "--pull"]) == 3
    assert len(pulled) == 1  # what is here is not fetched


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local
