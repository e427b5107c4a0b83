from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.bench.workload import (
    Length,
    TextScale,
    arrivals,
    load_dataset,
    random_asks,
)
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

FIXED = Length(16, 16)


@pytest.mark.parametrize("text", ["", "0", "-1", "5:3", "a", "1:b", "1.5"])
def test_bad_lengths_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Length.parse(text)


def test_lengths_are_read_and_spread() -> None:
    assert Length.parse("128") == Length(128, 128)
    assert str(Length.parse("64:256")) == "64:256"
    assert Length(100, 100).spread(0.5) == Length(50, 150)
    assert Length(1, 1).spread(1.0) == Length(1, 2)
    with pytest.raises(ConfigError, match="random-range"):
        Length(1, 1).spread(1.5)


@given(st.integers(2, 300_000), st.integers(0, 9), st.integers(1, 40), st.integers(1, 40))
def test_ids_lie_in_the_vocabulary_and_lengths_in_their_range(
    vocab: int, prefix: int, a: int, b: int
) -> None:
    length = Length(min(a, b), max(a, b))
    asks = random_asks(
        5, 1, input_len=length, output_len=length, prefix_len=prefix, vocab_size=vocab
    )
    for ask in asks:
        assert isinstance(ask.prompt, list)
        assert all(isinstance(i, int) and 0 <= i < vocab for i in ask.prompt)
        assert length.low <= len(ask.prompt) - prefix <= length.high
        assert ask.num_prompt_tokens == len(ask.prompt)
        assert length.low <= ask.max_tokens <= length.high
        assert ask.prompt[:prefix] == asks[0].prompt[:prefix]


def test_lengths_are_uniform() -> None:
    asks = random_asks(3000, 3, input_len=Length(1, 4), output_len=FIXED)
    counts = np.bincount([ask.num_prompt_tokens or 0 for ask in asks])[1:]
    assert len(counts) == 4
    assert np.all(np.abs(counts - 750) < 4 * math.sqrt(750))


def test_prompts_depend_on_seed_index_and_name_alone() -> None:
    def prompts(num: int, seed: int, name: str = "ask") -> list[tuple[int, ...]]:
        asks = random_asks(num, seed, input_len=FIXED, output_len=FIXED, name=name)
        return [tuple(ask.prompt) for ask in asks]  # type: ignore[arg-type]

    assert prompts(5, 7) == prompts(9, 7)[:5]
    everything = prompts(50, 7) + prompts(50, 8) + prompts(50, 7, "warm")
    assert len({prompt[:4] for prompt in everything}) == 150  # no cache could share a block


def test_text_prompts_follow_the_scale() -> None:
    scale = TextScale(overhead=20.0, per_word=2.0)
    (ask,) = random_asks(
        1,
        1,
        input_len=Length(120, 120),
        output_len=FIXED,
        prefix_len=10,
        prompt_format="text",
        scale=scale,
    )
    assert isinstance(ask.prompt, str)
    assert len(ask.prompt.split()) == 5 + 50


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_burstiness(burstiness: float) -> None:
    times = np.array(arrivals(20_001, 8.0, burstiness, seed=5))
    gaps = np.diff(times)
    assert times[0] == 0
    assert np.all(gaps >= 0)
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.05)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1 / burstiness, rel=0.1)
    assert arrivals(20_001, 8.0, burstiness, seed=5) == times.tolist()


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.sort(np.diff(arrivals(5001, 2.0, 1.0, seed=9)))
    expected = 1 - np.exp(-2.0 * gaps)
    distance = np.abs(expected - np.arange(1, 5001) / 5000).max()
    assert distance < 1.63 / math.sqrt(5000)  # Kolmogorov-Smirnov at the 1 % level


def test_arrivals_refuse_nonsense() -> None:
    for rate, burstiness in ((0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(ConfigError):
            arrivals(3, rate, burstiness, 0)


def test_dataset_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(
        '{"prompt": "a"}\n\n{"messages": [{"role": "user", "content": "b"}], "max_tokens": 3}\n'
        '{"prompt_ids": [1, 2]}\n'
    )
    asks = load_dataset(path, 9)
    assert [ask.prompt for ask in asks] == ["a", [{"role": "user", "content": "b"}], [1, 2]]
    assert [ask.max_tokens for ask in asks] == [9, 3, 9]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no prompts"),
        (b"{}\n", "line 1: no prompt"),
        (b'{"prompt": 3}\n', "line 1"),
        (b'{"prompt": "a"}\n{"pro', "line 2"),
        (b"\xff\n", "cannot read"),
    ],
)
def test_bad_datasets_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_dataset(path, 9)
    with pytest.raises(ConfigError, match="cannot read"):
        load_dataset(tmp_path / "none", 9)
