from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from rich.console import Console

from octavo.bench.offline import OfflineBench, offline_bench, print_report
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.types import SamplingParams


@dataclass
class Completion:
    token_ids: list[int]


@dataclass
class Output:
    outputs: list[Completion]


class FakeLLM:
    """Takes 0.1 ms per prompt token and 1 ms per step beyond the first."""

    def __init__(self) -> None:
        self.prompts: list[tuple[int, ...]] = []

    def generate(
        self, prompts: Sequence[Any], sampling_params: SamplingParams | None = None
    ) -> list[Output]:
        assert sampling_params is not None
        assert sampling_params.ignore_eos
        num = sampling_params.max_tokens
        assert num is not None
        ids = [tuple(prompt["prompt_token_ids"]) for prompt in prompts]
        self.prompts += ids
        time.sleep(sum(map(len, ids)) * 1e-4 + (num - 1) * 1e-3)
        return [Output([Completion([0] * num)]) for _ in prompts]


def test_rates_are_those_of_the_engine() -> None:
    llm = FakeLLM()
    bench = OfflineBench(num_prompts=4, input_len=100, output_len=51, repeats=3)
    report = offline_bench(bench, llm, model="m", vocab_size=500)
    assert report.prefill_tokens_per_s == pytest.approx(10_000, rel=0.1)
    assert report.decode_tokens_per_s == pytest.approx(4_000, rel=0.1)
    assert report.output_tokens_per_s == pytest.approx(204 / 0.09, rel=0.1)
    assert report.total_tokens_per_s == pytest.approx(604 / 0.09, rel=0.1)
    assert len(report.repeats) == 3
    assert len(set(llm.prompts)) == len(llm.prompts) == 4 * 7  # a cache could answer none of them
    assert report.setup.seed is not None
    out = io.StringIO()
    print_report(report, Console(file=out))
    assert "decode tokens/s" in out.getvalue()
    data = msgspec.json.decode(msgspec.json.encode(report))
    assert data["schema"] == "octavo.bench.offline/1"


def test_one_token_has_no_decode() -> None:
    bench = OfflineBench(num_prompts=2, input_len=10, output_len=1, repeats=1)
    report = offline_bench(bench, FakeLLM(), model="m", vocab_size=500)
    assert report.decode_tokens_per_s is None


@pytest.mark.parametrize("name", ["num_prompts", "input_len", "output_len", "repeats"])
def test_bad_options_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name.replace("_", "-")):
        OfflineBench(**{name: 0})
