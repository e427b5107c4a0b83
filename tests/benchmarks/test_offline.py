from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import octavo
from benchmarks.gpu.offline import main
from benchmarks.gpu.suites import Bench, Sample, measure, nano_lengths

if TYPE_CHECKING:
    from pathlib import Path

ALL = "decode,prefill,mixed,prefix,nano,single"


def test_a_dry_run_of_every_suite(
    small: list[str], lengths_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    flags = ["--suites", ALL, "--batches", "1,3", "--repeats", "2", "--scale", "0.02"]
    assert main([*small, *flags, "--lengths", str(lengths_file), "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]["record"] == "setup"
    found = {line["name"]: line for line in lines[1:]}
    assert list(found) == [
        "decode/1", "decode/3", "prefill/1x4096", "prefill/16x2048", "mixed", "prefix", "nano",
        "single",
    ]  # fmt: skip
    for line in found.values():
        assert all(value > 0 for value in line["metrics"].values()), line
        details = line["details"]
        assert len(details["seconds"]) == len(details["num_steps"]) >= 2
        assert 0 < details["device_ms_per_step"] < details["wall_ms_per_step"]
    # 5 tokens out of each: 256 times 0.02.
    assert found["decode/3"]["details"]["num_steps"] == [5, 5]
    assert found["single"]["details"]["num_steps"] == [5, 5]
    assert len(found["prefill/1x4096"]["details"]["seconds"]) == 4
    text = capsys.readouterr().out
    assert "theirs:" not in text, "a dry run is not comparable"


def test_the_lengths_of_nano_are_those_of_its_benchmark() -> None:
    """Its totals, as its published figures and the baseline's have them."""
    fake: Any = SimpleNamespace()
    inputs, outputs = nano_lengths(Bench(fake, deadline=0.0))
    assert (sum(inputs), sum(outputs)) == (142827, 133966)
    assert len(inputs) == len(outputs) == 256


def test_prompts_are_new_each_time_and_within_the_vocabulary() -> None:
    fake: Any = SimpleNamespace(vocab_size=300)
    bench = Bench(fake, deadline=0.0, scale=0.5)
    first, second = bench.tokens(50), bench.tokens(50)
    assert first != second
    assert all(30 <= token < 300 for token in first + second)
    assert bench.size(128) == 64
    assert bench.size(1) == 1


def test_late_measures_are_repeated_once_and_late_suites_are_not_begun(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake: Any = SimpleNamespace()
    assert list(Bench(fake, deadline=0.0, repeats=3).repeats()) == [0]
    assert list(Bench(fake, deadline=float("inf"), repeats=3).repeats(1)) == [0, 1, 2, 3]
    out = tmp_path / "out.jsonl"
    flags = ["--suites", "single", "--scale", "0.02", "--budget-s", "0", "--out", str(out)]
    assert main([*small, *flags]) == 1
    assert "no time left for single" in capsys.readouterr().out
    assert json.loads(out.read_text().splitlines()[-1])["record"] == "skipped"


def test_times_are_told_per_step() -> None:
    samples = [Sample(2.0, 10, 0.01, 1.0, 0.3, 0), Sample(4.0, 20, 0.02, 2.0, 0.6, 3)]
    result = measure("name", {"total_s": 1.0}, samples, more=1)
    assert result.details["scheduler_us_per_step"] == pytest.approx(1000)
    assert result.details["device_ms_per_step"] == pytest.approx(100)
    assert result.details["wall_ms_per_step"] == pytest.approx(200)
    assert result.details["cpu_ms_per_step"] == pytest.approx(30)
    assert result.details["more"] == 1
    assert "preemptions [0, 3]" in result.notes[0]


class OtherLLM:
    """Takes what `vllm.LLM` does, so far as a benchmark asks for it; octavo answers."""

    def __init__(self, model: str, **options: Any) -> None:
        self._llm = octavo.LLM(model, **options)
        model_config = SimpleNamespace(get_vocab_size=lambda: self._llm.info.vocab_size)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=model_config))

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool = True) -> Any:
        assert not use_tqdm
        return self._llm.generate(prompts, sampling_params)

    def reset_prefix_cache(self) -> bool:
        self._llm.reset_prefix_cache()
        return True


def test_a_dry_run_of_the_other_engine(
    small: list[str], lengths_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The same suites and measures, without what is told of steps."""

    def params(*, detokenize: bool, **fields: Any) -> octavo.SamplingParams:
        assert not detokenize
        return octavo.SamplingParams(**fields)

    module = SimpleNamespace(LLM=OtherLLM, SamplingParams=params, __version__="1.2.3")
    monkeypatch.setitem(sys.modules, "vllm", module)  # type: ignore[arg-type]
    out = tmp_path / "out.jsonl"
    suites = ALL.removesuffix(",single")
    flags = ["--suites", suites, "--batches", "1,3", "--repeats", "2", "--scale", "0.02"]
    flags += ["--engine", "vllm", "--lengths", str(lengths_file), "--out", str(out)]
    assert main([*small, *flags]) == 0
    setup, *lines = (json.loads(line) for line in out.read_text().splitlines())
    assert (setup["engine"], setup["title"]) == ("vllm", "vLLM 1.2.3")
    assert [line["name"] for line in lines] == [
        "decode/1", "decode/3", "prefill/1x4096", "prefill/16x2048", "mixed", "prefix", "nano",
    ]  # fmt: skip
    for line in lines:
        assert all(value > 0 for value in line["metrics"].values()), line
        assert len(line["details"]["seconds"]) >= 2
        assert "num_steps" not in line["details"]
    text = capsys.readouterr().out
    assert "vLLM 1.2.3" in text
    assert "theirs:" not in text


def test_the_other_engine_is_not_asked_to_stream(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--engine", "vllm", "--suites", "decode,single"])
    assert "single" in capsys.readouterr().err


def test_an_unknown_suite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--suites", "decode,nothing"])
    assert "nothing" in capsys.readouterr().err
