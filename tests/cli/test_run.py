from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from octavo.cli.main import main
from octavo.types import SamplingParams
from tests.cli.conftest import FakeLLM
from tests.cli.test_main import ROOT

if TYPE_CHECKING:
    Captured = pytest.CaptureFixture[str]


def test_streams_the_answer(llms: list[FakeLLM], model: str, capsys: Captured) -> None:
    words = "--max-tokens 5 --temperature 0 --top-p 0.5 --seed 3 --max-model-len 64 --system Be"
    assert main(["run", model, "Hi", *words.split()]) == 0
    captured = capsys.readouterr()
    assert captured.out == "Hello.\n"
    assert captured.err == ""
    [llm] = llms
    messages = [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}]
    params = SamplingParams(max_tokens=5, temperature=0, top_p=0.5, seed=3)
    assert llm.asked == [(messages, params)]
    assert llm.model == model
    assert llm.options["max_model_len"] == 64
    assert llm.is_closed


def test_what_was_not_given_is_the_model_s_own(llms: list[FakeLLM], model: str) -> None:
    main(["run", model, "Hi"])
    assert llms[0].asked[0][1] == SamplingParams(max_tokens=1024, temperature=0.25)


def test_raw_and_models_without_a_template(
    llms: list[FakeLLM], model: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    main(["run", model, "Once", "--raw"])
    monkeypatch.setattr(FakeLLM, "has_chat_template", False)
    main(["run", model, "Once"])
    assert [llm.asked[0][0] for llm in llms] == ["Once", "Once"]
    assert main(["run", model, "Once", "--system", "x"]) == 1
    assert "no chat template" in capsys.readouterr().err
    assert main(["run", model, "Once", "--raw", "--system", "x"]) == 1


@pytest.mark.parametrize("words", [[], ["-"]])
def test_the_prompt_comes_through_a_pipe(
    words: list[str], llms: list[FakeLLM], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("line 1\nline 2\n"))
    assert main(["run", model, *words]) == 0
    assert llms[0].asked[0][0] == [{"role": "user", "content": "line 1\nline 2\n"}]


def test_an_empty_prompt_loads_nothing(
    llms: list[FakeLLM], model: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert main(["run", model]) == 1
    assert main(["run", model, ""]) == 1
    assert capsys.readouterr().err == "octavo: error: the prompt is empty\n" * 2
    assert llms == []


def test_json_and_stats(llms: list[FakeLLM], model: str, capsys: Captured) -> None:
    assert main(["run", model, "Hi", "--json", "--stats"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert answer["text"] == "Hello."
    assert answer["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert answer["stats"]["ttft_s"] <= answer["stats"]["duration_s"]
    first, second = captured.err.splitlines()
    assert first.startswith("imports ")
    assert second.startswith("5 prompt tokens, 3 output tokens, first token after ")


def test_a_failing_engine(
    llms: list[FakeLLM], model: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(FakeLLM, "finish_reason", "error")
    assert main(["run", model, "Hi"]) == 1
    assert capsys.readouterr().err == "octavo: error: out of paper\n"
    assert llms[0].is_closed


def test_ctrl_c_ends_it_between_two_deltas(
    llms: list[FakeLLM], model: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def interrupt(index: int) -> None:
        if index == 0:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(FakeLLM, "after_word", staticmethod(interrupt))
    before = signal.getsignal(signal.SIGINT)
    assert main(["run", model, "Hi"]) == 130
    assert capsys.readouterr().out == "Hello"
    assert llms[0].is_closed
    assert signal.getsignal(signal.SIGINT) is before


def test_bytes_that_are_no_text(model: str) -> None:
    # The model is an empty file: reading the prompt comes before, and must not be what fails.
    result = subprocess.run(
        [sys.executable, "-m", "octavo.cli.main", "run", model],
        cwd=ROOT,
        input=b"\xff\xfe",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(b"octavo: error: " + model.encode())
