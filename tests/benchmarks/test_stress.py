from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.gpu.stress import (
    MIB,
    Asked,
    Memory,
    Source,
    fault_of,
    main,
    memory_faults,
)
from octavo.engine.messages import TokenOutput
from octavo.engine.scheduler import Scheduler
from octavo.types import (
    EngineInfo,
    KVCacheLayout,
    PositionLogprobs,
    SamplingParams,
    TokenLogprob,
)

if TYPE_CHECKING:
    from pathlib import Path

INFO = EngineInfo(
    architecture="X",
    dtype="float32",
    device="cpu",
    vocab_size=100,
    max_model_len=1000,
    kv_cache=KVCacheLayout(200, 16, 1),
    startup_s={},
)


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_a_short_run_has_no_fault(
    runs_ahead: bool, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = json.loads(small[-1]) | {"async_scheduling": runs_ahead, "kv_cache_memory": 2**19}
    out = tmp_path / "out.jsonl"
    flags = ["--kw", json.dumps(options), "--minutes", "0.06", "--seed", "3", "--out", str(out)]
    code = main([*small, *flags, "--min-preemptions", "0"])
    text = capsys.readouterr().out
    assert code == 0, text
    record = json.loads(out.read_text())
    assert record["faults"] == []
    assert record["counts"]["ended by length"] > 0
    assert record["counts"]["checks"] >= 2
    assert text.rstrip().endswith("no fault")


def test_what_goes_wrong_is_found(
    small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scheduler that keeps a finished request's blocks, and never preempts."""
    monkeypatch.setattr(Scheduler, "_release", lambda self, request: None)
    flags = ["--minutes", "0.03", "--stuck-s", "1", "--seed", "3", "--min-preemptions", "100000"]
    assert main([*small, *flags]) == 1
    text = capsys.readouterr().out
    assert "no output for 1 s" in text
    assert "blocks are not free" in text
    assert "the scheduler's books are wrong" in text
    assert "preemptions: the cache was never full" in text


def test_requests_fit_the_engine_and_differ() -> None:
    source = Source(INFO, num_rows=8, seed=1)
    drawn = [source.request() for _ in range(500)]
    for prompt, answers in drawn:
        for params in answers:
            assert params.max_tokens is not None
            assert 2 <= len(prompt) + params.max_tokens <= 1000
        assert all(0 <= token < 100 for token in prompt)
    assert len({tuple(prompt) for prompt, _ in drawn}) > 400
    assert {len(answers) for _, answers in drawn} == {1, 2, 3, 4}
    assert len(source.too_long()) == 1000
    longest = sorted(len(p) + (a[0].max_tokens or 0) for p, a in drawn)
    # A quarter is long: 8 rows of them need at least twice the cache's 3200 tokens, if they may.
    assert longest[-100] >= 800


GOOD = SamplingParams(max_tokens=5, temperature=0, logprobs=1, stop_token_ids=[7])


def entry(token: int, logprob: float, best: float) -> PositionLogprobs:
    return PositionLogprobs(TokenLogprob(token, logprob, 1), [TokenLogprob(3, best, 1)])


def output(tokens: list[int], logprobs: list[Any], **more: Any) -> TokenOutput:
    return TokenOutput("r", tokens, logprobs, **more)


def test_a_good_output_has_no_fault() -> None:
    assert fault_of(Asked(GOOD), output([3], [entry(3, -1.0, -1.0)]), 100) is None
    last = output([3], [entry(3, -1.0, -1.0)], finish_reason="length")
    assert fault_of(Asked(GOOD, num_tokens=4), last, 100) is None


@pytest.mark.parametrize(
    ("bad", "num_tokens", "text"),
    [
        (output([], [], finish_reason="error", error="boom"), 0, "error: boom"),
        (output([], [], finish_reason="stop"), 0, "without tokens"),
        (output([100], [entry(100, -1, -1)]), 0, "outside the vocabulary"),
        (output([3], [entry(3, -1, -1)]), 4, "5 tokens of 5, and None"),
        (output([3], [entry(3, -1, -1)], finish_reason="length"), 0, "after 1 tokens of 5"),
        (output([3], [entry(3, -1, -1)], finish_reason="stop", stop_reason=8), 0, "no stop id"),
        (output([7], [entry(7, -1, -1)]), 0, "went on after the stop id 7"),
        (output([3], []), 0, "0 log-probabilities for 1 tokens"),
        (output([3], [entry(4, -1, -1)]), 0, "log-probability of 4 for the token 3"),
        (output([3], [entry(3, float("nan"), -1)]), 0, "a log-probability of nan"),
        (output([3], [entry(3, -2, -1)]), 0, "not the most probable"),
        (output([3], [PositionLogprobs(TokenLogprob(3, -1, 1), [])]), 0, "1 were asked for"),
    ],
)
def test_a_bad_output_has_one(bad: TokenOutput, num_tokens: int, text: str) -> None:
    fault = fault_of(Asked(GOOD, num_tokens=num_tokens), bad, 100)
    assert fault is not None
    assert text in fault


def test_growth_counts_over_the_second_half_only() -> None:
    steady = [Memory(0, 0), Memory(500 * MIB, 900 * MIB), Memory(501 * MIB, 901 * MIB)]
    assert memory_faults(steady, 10 * MIB, 600 * MIB) == []
    grown = [*steady[:2], Memory(520 * MIB, 920 * MIB)]
    assert len(memory_faults(grown, 10 * MIB, 600 * MIB)) == 2
    assert "are allowed" in memory_faults(steady, 10 * MIB, 400 * MIB)[0]
    assert memory_faults([Memory(None, 0), Memory(None, 1)], 10, None) == []
