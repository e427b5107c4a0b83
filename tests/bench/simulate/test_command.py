"""`octavo bench simulate` from its flags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli.main import main

Captured = pytest.CaptureFixture[str]


def run(*words: str) -> int:
    return main(["bench", "simulate", *words])


def test_policies_side_by_side(tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / "r.json"
    flags = "--num-requests 60 --rate 40 --tenants a:1,b:2:1 --policies fcfs,priority,fair"
    code = run(*flags.split(), "--slo", "ttft:200", "--json", str(target))
    out = capsys.readouterr().out
    assert code == 0
    assert all(word in out for word in ("fcfs", "priority", "fair", "TTFT p99", "Jain"))
    report = json.loads(target.read_text())
    assert report["schema"] == "octavo.bench.simulate/1"
    assert [policy["policy"] for policy in report["policies"]] == ["fcfs", "priority", "fair"]
    assert all(policy["num_completed"] == 60 for policy in report["policies"])
    assert report["setup"]["model"] == "llama-3.1-8b"
    assert report["setup"]["load"]["tenants"][1] == {"name": "b", "share": 2.0, "priority": 1}


def test_json_on_stdout(capsys: Captured) -> None:
    assert run("--num-requests", "5", "--device", "l4", "--model", "qwen3-0.6b", "--json", "-") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["num_requests"] == 5
    assert "output tokens/s" in captured.err


def test_a_trace_file(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"arrival_s": 0, "input_len": 10, "output_len": 4}\n' * 3)
    assert run("--trace", str(path), "--json", "-") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["policies"][0]["output_tokens"] == 12
    assert report["setup"]["load"]["trace"] == str(path)


def test_plots(tmp_path: Path, capsys: Captured) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "plots"
    flags = "--num-requests 30 --rate 20 --tenants a:1,b:1 --policies fcfs,fair --plots"
    assert run(*flags.split(), str(folder)) == 0
    for name in ("latency", "timeline", "tenants"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote " in "".join(capsys.readouterr())


def test_no_request_that_can_run_is_a_failure(capsys: Captured) -> None:
    assert run("--num-requests", "2", "--num-kv-blocks", "2") == 1
    assert "refused 2 requests" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--policies fcfs,best", "none of fcfs, priority, fair"),
        ("--tenants a", "NAME:SHARE"),
        ("--tenants a:x", "NAME:SHARE"),
        ("--tenants a:1:2:3", "NAME:SHARE"),
        ("--tenants a:1,a:2", "different names"),
        ("--burstiness 2", "--burstiness would have no effect: it needs --rate"),
        ("--rate 3 --arrivals poisson --burstiness 2", "for --arrivals gamma"),
        ("--prefixes 3", "--prefixes would have no effect: it needs --prefix-len"),
        ("--think-time 3", "it needs --turns"),
        ("--turns 2 --concurrency 4", "exclude each other"),
        ("--speed 2", "it is for --trace"),
        ("--trace x.jsonl --rate 3", "a trace has its own requests"),
        ("--trace no-such-file.jsonl", "cannot read"),
        ("--lengths x.json --input-len 3", "--lengths brings both"),
        ("--rate 0", "--rate must be above 0"),
        ("--num-kv-blocks 0", "--num-kv-blocks must be at least 1"),
        ("--concurrency 0", "--concurrency must be at least 1"),
        ("--max-num-seqs 0", "--max-num-seqs must be at least 1"),
        ("--model llama-3.1-70b", "does not fit h100"),
        ("--model nothing", "neither a file nor one of"),
        ("--slo speed:3", "is not a bound"),
    ],
)
def test_flags_that_are_refused(words: str, message: str, capsys: Captured) -> None:
    assert run(*words.split()) == 1
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error


def test_plots_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("--num-requests", "1", "--plots", "x") == 1
    assert "octavo[plots]" in capsys.readouterr().err
    assert not Path("x").exists()
