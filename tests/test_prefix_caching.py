"""On SmolLM2: what is found in the prefix cache changes no token, and salts keep apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from octavo.config import EngineConfig
from octavo.engine.messages import AddRequest
from octavo.kernels import cpu
from octavo.launch import build_engine
from octavo.text.tokenizer import load_tokenizer
from octavo.types import SamplingParams
from octavo.weights.open import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.engine.core import EngineCore
    from octavo.text.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(300),
    pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not())),
]

BLOCK = 16
BYTES_PER_BLOCK = 30 * 2 * 3 * 64 * BLOCK * 2
"""SmolLM2 135M in bfloat16: 30 layers, keys and values, 3 heads of 64."""

SYSTEM = (
    "You are the assistant of a small library by the sea. You answer in one or two sentences. "
    "You know every shelf, every opening hour and every reader by name, and you never make a thing "
    "up. When you do not know an answer, you say so and name somebody who may know it. "
)
QUESTIONS = [
    "When do you open?",
    "Which book tells of lighthouses?",
    "Where are the maps?",
    "Who wrote the oldest book that you have?",
    "May I bring my dog?",
    "How many readers came today?",
]


class Answer(NamedTuple):
    token_ids: list[int]
    num_cached: int


def run(
    core: EngineCore, prompts: list[list[int]], num_tokens: int, salt: str = ""
) -> list[Answer]:
    """Greedy answers to prompts that come at once."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    names = [str(index) for index in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        core.add(AddRequest(name, prompt, params, [], cache_salt=salt))
    answers = {name: Answer([], 0) for name in names}
    while core.has_work:
        for output in core.step():
            before = answers[output.request_id].token_ids
            answers[output.request_id] = Answer(before + output.token_ids, output.num_cached_tokens)
        core.scheduler.check_integrity()
    return [answers[name] for name in names]


def engine(path: Path, *, caching: bool, num_blocks: int) -> EngineCore:
    config = EngineConfig(
        model=str(path),
        dtype="float32",
        device="cpu",
        max_model_len=min(1024, num_blocks * BLOCK),
        max_num_seqs=8,
        kv_cache_memory=num_blocks * BYTES_PER_BLOCK,
        enable_prefix_caching=caching,
        kv_cache_dtype="bfloat16",
        attention_backend="native",  # sums alike for any pieces of a prompt
    )
    built = build_engine(config)
    assert built.info.kv_cache.num_blocks == num_blocks
    return built.core


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    checkpoint = open_checkpoint(smollm2_path)
    try:
        return load_tokenizer(smollm2_path, checkpoint.config)
    finally:
        checkpoint.close()


@pytest.fixture(scope="module")
def plain(smollm2_path: Path) -> EngineCore:
    return engine(smollm2_path, caching=False, num_blocks=128)


@pytest.fixture(scope="module")
def cached(smollm2_path: Path) -> EngineCore:
    return engine(smollm2_path, caching=True, num_blocks=128)


def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(f"{SYSTEM}\n\nReader: {q}\nLibrary:") for q in QUESTIONS]


def test_shared_system_prompts(tokenizer: Tokenizer, plain: EngineCore, cached: EngineCore) -> None:
    expected = run(plain, prompts(tokenizer), 12)
    for is_again in (False, True):
        got = run(cached, prompts(tokenizer), 12)
        assert [a.token_ids for a in got] == [a.token_ids for a in expected]
        num_shared = sum(answer.num_cached >= 3 * BLOCK for answer in got)
        assert num_shared == len(got) - (not is_again)  # the first one computes it
    assert {answer.num_cached for answer in expected} == {0}


def test_conversations(tokenizer: Tokenizer, plain: EngineCore, cached: EngineCore) -> None:
    histories = [tokenizer.encode(f"{name}'s diary.\n") for name in ("Ann", "Bo", "Cy")]
    for turn in range(3):
        asked = [
            history + tokenizer.encode(f"\nDay {turn}: {QUESTIONS[turn]} {QUESTIONS[-turn]}\n")
            for history in histories
        ]
        expected, got = run(plain, asked, 16), run(cached, asked, 16)
        assert [a.token_ids for a in got] == [a.token_ids for a in expected]
        if turn:
            # All full blocks of what was computed before: all but the last token of the history.
            for answer, history in zip(got, histories, strict=True):
                assert answer.num_cached == (len(history) - 1) // BLOCK * BLOCK > 0
        histories = [a + answer.token_ids for a, answer in zip(asked, got, strict=True)]


def test_preemptions(smollm2_path: Path, tokenizer: Tokenizer, plain: EngineCore) -> None:
    asked = prompts(tokenizer)
    num_tokens = 40
    needed = max(len(prompt) for prompt in asked) + num_tokens
    assert needed > 100
    core = engine(smollm2_path, caching=True, num_blocks=-(-needed // BLOCK) + 6)
    expected = run(plain, asked, num_tokens)
    got = run(core, asked, num_tokens)
    assert core.stats.num_preemptions > 0
    assert [a.token_ids for a in got] == [a.token_ids for a in expected]


def test_salts(tokenizer: Tokenizer, cached: EngineCore) -> None:
    prompt = prompts(tokenizer)[0]
    num_full = (len(prompt) - 1) // BLOCK * BLOCK
    answers = {
        name: run(cached, [prompt], 4, salt)[0]
        for name, salt in [
            ("a", "salt a"),
            ("a again", "salt a"),
            ("b", "salt b"),
            ("b again", "salt b"),
        ]
    }
    found = {name: answer.num_cached for name, answer in answers.items()}
    assert found == {"a": 0, "a again": num_full, "b": 0, "b again": num_full}
    assert len({tuple(answer.token_ids) for answer in answers.values()}) == 1
    together = run(cached, [prompt, prompt], 4, "salt c")
    assert sorted(answer.num_cached for answer in together) == [0, num_full]
