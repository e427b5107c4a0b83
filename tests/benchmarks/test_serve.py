"""The HTTP benchmark and the start-up benchmark against a real server with a tiny model."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from benchmarks.gpu import serve, startup
from benchmarks.gpu.server_process import Server
from benchmarks.gpu.shapes import model_folder
from octavo.bench.workload import load_dataset

if TYPE_CHECKING:
    from pathlib import Path


def test_a_dry_run_over_http(
    small: list[str], lengths_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    flags = ["--lengths", str(lengths_file), "--concurrency", "1,4", "--repeats", "2"]
    code = serve.main([*small, *flags, "--client-processes", "2", "--out", str(out)])
    text = capsys.readouterr().out
    assert code == 0, text
    setup, alone, four, end = (json.loads(line) for line in out.read_text().splitlines())
    assert setup["ready_s"] > 0
    assert "weights" in setup["parts"]
    for line, num in ((alone, 12), (four, 15)):
        assert line["details"]["num_requests"] == num
        assert len(line["details"]["runs"]) == 2
        assert line["details"]["num_failed"] == [0, 0]
        metrics = line["metrics"]
        assert 0 < metrics["ttft_p50_ms"] <= metrics["ttft_p99_ms"]
        assert metrics["itl_p50_ms"] > 0
        assert metrics["output_tokens_per_s"] > 0
    assert end["exit_code"] == 0
    assert end["problems"] == []
    assert "exit code 0" in text


def test_a_failed_request_and_a_wrong_length_are_problems(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = tmp_path / "lengths.json"
    lengths.write_text(json.dumps({"input": [4, 900], "output": [2, 2]}))  # the context is 512
    flags = ["--lengths", str(lengths), "--concurrency", "2", "--repeats", "1"]
    assert serve.main([*small, *flags, "--client-processes", "1"]) == 1
    text = capsys.readouterr().out
    assert "PROBLEM: 2 output tokens instead of 4" in text
    assert "PROBLEM: 1 x HTTP 400" in text


def test_prompts_have_the_lengths_and_ids_that_were_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    serve.write_prompts(path, [(3, 7), (5, 1)], random.Random(1), vocab_size=2000)
    asks = load_dataset(path, 99)
    assert [(len(ask.prompt), ask.max_tokens) for ask in asks] == [(3, 7), (5, 1)]
    ids = [token for ask in asks for token in ask.prompt if isinstance(token, int)]
    assert len(ids) == 8
    assert all(200 <= token < 2000 for token in ids)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no such file or folder"),
        Server(tmp_path / "nothing", timeout_s=60),
    ):
        pass


def test_a_server_is_stopped_also_after_an_error() -> None:
    flags = ["--load-format", "dummy", "--device", "cpu", "--kv-cache-memory", "1MiB"]

    def fail(server: Server) -> None:
        with server:
            assert server.cpu_seconds()["engine"] > 0
            raise ZeroDivisionError

    with model_folder("tiny-llama") as folder:
        server = Server(folder, [*flags, "--num-threads", "1", "--max-model-len", "256"])
        with pytest.raises(ZeroDivisionError):
            fail(server)
    assert server.stopped is not None
    assert server.stopped.exit_code == 0


@pytest.mark.slow
def test_start_up_is_measured_cold_and_warm(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    code = startup.main([*small, "--out", str(out), "--limit-s", "0.01"])
    text = capsys.readouterr().out
    assert code == 1
    assert text.count("PROBLEM") == text.count(": ready after") == 4
    _, *lines = (json.loads(line) for line in out.read_text().splitlines())
    kinds = [line["name"] for line in lines]
    assert kinds == [f"startup/{a}/{b}" for a in ("offline", "server") for b in ("cold", "warm")]
    for line in lines:
        assert 0 < line["metrics"]["ready_s"] < line["metrics"]["first_token_s"] < 100
    parts = lines[0]["details"]["parts"]
    assert sum(parts.values()) == pytest.approx(lines[0]["metrics"]["first_token_s"], abs=0.2)


def test_a_start_that_fails_is_told(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    small = [*small, "--kw", '{"device": "cpu", "kv_cache_memory": 1}', "--starts", "offline"]
    assert startup.main(small) == 1
    assert capsys.readouterr().out.count("PROBLEM: startup/offline") == 2
