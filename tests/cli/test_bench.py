from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from octavo.cli.main import main
from tests.cli.test_main import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.fake_server import Fake
    from tests.cli.conftest import FakeLLM

    Captured = pytest.CaptureFixture[str]


def test_serve_prints_a_table_and_writes_json(fake: Fake, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "r.json"
    words = "--num-prompts 6 --concurrency 2 --input-len 8 --output-len 4:6 --slo ttft:1000"
    assert main(["bench", "serve", "--url", fake.url, *words.split(), "--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert "time to first token (TTFT)" in captured.out
    report = json.loads(path.read_text())
    assert report["num_completed"] == 6
    assert report["setup"]["output_len"] == "4:6"
    assert report["goodput"]["num"] == 6
    assert all(4 <= body["max_tokens"] <= 6 for body in fake.bodies[1:])


def test_json_to_stdout_leaves_stdout_to_json(fake: Fake, capsys: Captured) -> None:
    words = "--num-prompts 2 --rate 100 --burstiness 2 --random-len 3:5 --seed 4 --json -"
    assert main(["bench", "serve", "--url", fake.url, *words.split()]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["setup"]["input_len"] == report["setup"]["output_len"] == "3:5"
    assert report["setup"]["rate"] == 100
    assert report["setup"]["concurrency"] is None
    assert report["setup"]["seed"] == 4
    assert "TTFT" in captured.err


def test_the_key_comes_from_the_environment(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    fake.api_key = "sesame"
    words = ["bench", "serve", "--url", fake.url, "--num-prompts", "1", "--output-len", "2"]
    assert main(words) == 1
    assert "wrong key" in capsys.readouterr().err
    monkeypatch.setenv("OCTAVO_API_KEY", "sesame")
    assert main(words) == 0


@pytest.mark.parametrize(
    "words",
    [
        "--input-len 0",
        "--slo x:1",
        "--extra-body 3",
        "--rate -1",
        "--random-range 2",
        "--timeout 0",
    ],
)
def test_bad_flags_are_one_line(words: str, fake: Fake, capsys: Captured) -> None:
    assert main(["bench", "serve", "--url", fake.url, *words.split()]) == 1
    err = capsys.readouterr().err
    assert err.startswith("octavo: error: ")
    assert err.count("\n") == 1


def test_all_failed_is_exit_code_1(fake: Fake, capsys: Captured) -> None:
    words = "--num-prompts 3 --warmup 0 --timeout 0.6 --output-len 16"
    fake.itl_s = 0.06  # the probe of 4 tokens is quick enough, the requests are not
    assert main(["bench", "serve", "--url", fake.url, *words.split()]) == 1
    assert "failed 3 x no complete answer within 0.6 s" in capsys.readouterr().out


def test_ctrl_c_prints_what_there_is(fake: Fake) -> None:
    fake.itl_s = 0.02
    command = [sys.executable, "-m", "octavo.cli.main", "bench", "serve", "--url", fake.url]
    command += ["--num-prompts", "10000", "--output-len", "10", "--json", "-"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while len(fake.bodies) < 40:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    report = json.loads(out)
    assert report["num_completed"] >= 1
    assert report["num_completed"] + report["num_cancelled"] == 10000
    assert "interrupted" in err
    assert "Traceback" not in err


def test_offline(llms: list[FakeLLM], model: str, capsys: Captured) -> None:
    words = "--num-prompts 2 --input-len 4 --output-len 1 --repeats 2 --max-num-seqs 3 --json -"
    assert main(["bench", "offline", model, *words.split()]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert len(report["repeats"]) == 2
    assert report["engine"]["device"] == "cpu"
    assert report["prefill_tokens_per_s"] > 0
    assert "prefill tokens/s" in captured.err
    [llm] = llms
    assert llm.options["max_num_seqs"] == 3
    assert llm.is_closed
    prompts = [prompt["prompt_token_ids"] for ask, _ in llm.asked for prompt in ask]
    assert all(len(prompt) == 4 and max(prompt) < 300 for prompt in prompts)


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("--dataset FILE --input-len 5", "--input-len"),
        ("--dataset FILE --prefix-len 5", "--prefix-len"),
        ("--dataset FILE --random-range 0.5", "--random-range"),
        ("--dataset FILE --prompt-format text", "--prompt-format"),
        ("--random-len 3:4 --output-len 5", "--output-len"),
        ("--prompt-format text --vocab-size 500", "--vocab-size"),
        ("--endpoint chat --vocab-size 500", "--vocab-size"),
        ("--endpoint chat --prompt-format ids", "--prompt-format"),
        ("--burstiness 2", "--burstiness"),
    ],
)
def test_no_flag_is_ignored(
    words: str, flag: str, fake: Fake, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a"}\n')
    words = words.replace("FILE", str(path))
    assert main(["bench", "serve", "--url", fake.url, *words.split()]) == 1
    err = capsys.readouterr().err
    assert flag in err
    assert err.count("\n") == 1
    assert fake.bodies == []


@pytest.mark.parametrize("target", ["", "no/such/folder/r.json"])
def test_a_report_that_cannot_be_written_costs_no_run(
    target: str, fake: Fake, tmp_path: Path, capsys: Captured
) -> None:
    words = ["bench", "serve", "--url", fake.url, "--json", str(tmp_path / target)]
    assert main(words) == 1
    assert "cannot write" in capsys.readouterr().err
    assert fake.bodies == []


def test_ids_that_a_server_does_not_take(fake: Fake, capsys: Captured) -> None:
    fake.rejects = ("prompt",)
    assert main(["bench", "serve", "--url", fake.url]) == 1
    assert "--prompt-format text or --vocab-size may help" in capsys.readouterr().err


def test_offline_says_when_the_context_is_too_short(
    llms: list[FakeLLM], model: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def generate(self: FakeLLM, prompts: list[object], params: object) -> list[object]:
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0])]) for _ in prompts]

    monkeypatch.setattr("tests.cli.conftest.FakeLLM.generate", generate)
    assert main(["bench", "offline", model, "--output-len", "4"]) == 1
    assert "the context is too short" in capsys.readouterr().err
    assert llms[0].is_closed
