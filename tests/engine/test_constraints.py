"""Bound requests in the engine's loop, over a fake device and grammars of a few lines."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest, TokenOutput
from octavo.errors import InvalidRequestError
from octavo.types import SamplingParams, StructuredOutputs
from tests.engine.fake_executor import FakeExecutor, expected_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

VOCAB = 1000
EOS = 999


class CountingMatcher:
    """The output's tokens rise by 1 modulo 7, from any start; after `length` of them it ends."""

    def __init__(self, length: int, fails_at: int | None) -> None:
        self.tokens: list[int] = []
        self.failure: str | None = None
        self._length, self._fails_at = length, fails_at

    @property
    def is_finished(self) -> bool:
        return len(self.tokens) >= self._length

    def allowed(self) -> list[int]:
        if not self.tokens:
            return list(range(VOCAB - 1))
        return [t for t in range(VOCAB - 1) if t % 7 == (self.tokens[-1] + 1) % 7]

    def accept(self, token_id: int) -> bool:
        if token_id not in self.allowed():
            self.failure = f"{token_id} after {self.tokens}"
            return False
        self.tokens.append(token_id)
        return True

    def fill(self, bits: np.ndarray) -> None:
        if self._fails_at is not None and len(self.tokens) >= self._fails_at:
            self.failure = "planted"
        flat = np.zeros(len(bits) * 32, np.uint8)
        flat[self.allowed()] = 1
        bits[:] = np.packbits(flat, bitorder="little").view(np.uint32)


class CountingGrammars:
    """`choice[0]` is the length, `choice[1]` where it fails; `regex` does not compile."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def matcher(self, spec: StructuredOutputs) -> CountingMatcher:
        self.gate.wait(10)
        if spec.regex is not None:
            raise InvalidRequestError(f"no such regex: {spec.regex}", param="structured_outputs")
        assert spec.choice is not None
        numbers = [int(text) for text in spec.choice]
        return CountingMatcher(numbers[0], numbers[1] if len(numbers) > 1 else None)

    def fill_rows(self, matchers: Sequence[CountingMatcher], bits: np.ndarray) -> None:
        for matcher, row in zip(matchers, bits, strict=True):
            matcher.fill(row)


def make_core(ahead: int, grammars: CountingGrammars | None = None, **kwargs) -> EngineCore:
    executor = FakeExecutor(**kwargs)
    made = CountingGrammars() if grammars is None else grammars
    return EngineCore(
        executor,
        max_num_seqs=executor.max_num_seqs,
        max_num_batched_tokens=16,
        num_steps_ahead=ahead,
        grammars=lambda: made,
    )


def request(name: str, prompt: list[int], max_tokens: int = 8, **spec) -> AddRequest:
    end, start = spec.pop("end", ()), spec.pop("start", ())
    bound = (
        StructuredOutputs(**spec, reasoning_end_token_ids=end, reasoning_start_token_ids=start)
        if spec
        else None
    )
    params = SamplingParams(max_tokens=max_tokens, seed=7, structured_outputs=bound)
    return AddRequest(name, prompt, params, [EOS])


def drain(core: EngineCore) -> dict[str, list[TokenOutput]]:
    outputs: dict[str, list[TokenOutput]] = {}
    for _ in range(10_000):
        if not core.has_work:
            break
        for output in core.step():
            outputs.setdefault(output.request_id, []).append(output)
    assert not core.has_work
    assert core.scheduler.kv_cache.num_free_blocks == core.scheduler.kv_cache.num_blocks
    for parts in outputs.values():
        assert [part.finish_reason is not None for part in parts].count(True) == 1
        assert parts[-1].finish_reason is not None
    core.close()
    return outputs


def tokens_of(parts: list[TokenOutput]) -> list[int]:
    return [token for part in parts for token in part.token_ids]


def rises(tokens: list[int]) -> bool:
    return all(b % 7 == (a + 1) % 7 for a, b in itertools.pairwise(tokens))


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_bound_rows_follow_their_grammars_and_free_ones_do_not_notice(ahead: int) -> None:
    core = make_core(ahead)
    for index in range(12):
        prompt = [index % 3, *range(index)]
        spec = {"choice": [str(3 + index)]} if index % 2 else {}
        core.add(request(f"r{index}", prompt, 8, **spec))
    outputs = drain(core)
    for index in range(12):
        tokens, reason = tokens_of(outputs[f"r{index}"]), outputs[f"r{index}"][-1].finish_reason
        if index % 2:
            assert rises(tokens)
            assert len(tokens) == min(3 + index, 8)
            assert reason == ("stop" if 3 + index < 8 else "length")
        else:
            assert tokens == expected_tokens([index % 3, *range(index)], 7, 8)


@pytest.mark.parametrize("ahead", [0, 1])
def test_bound_requests_survive_preemption(ahead: int) -> None:
    core = make_core(ahead, num_blocks=10, max_model_len=30)
    for index in range(4):
        core.add(request(f"r{index}", [index] * 4, 20, choice=["40"]))
    outputs = drain(core)
    assert core.stats.num_preemptions
    for parts in outputs.values():
        assert rises(tokens_of(parts))
        assert len(tokens_of(parts)) == 20


def test_what_does_not_compile_ends_alone() -> None:
    core = make_core(0)
    core.add(request("bad", [1], regex="("))
    core.add(request("good", [1], choice=["2"]))
    outputs = drain(core)
    assert outputs["bad"][0].error == "no such regex: ("
    assert outputs["good"][-1].finish_reason == "stop"


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_grammar_that_fails_ends_its_request_alone(ahead: int) -> None:
    core = make_core(ahead)
    core.add(request("bad", [1], choice=["9", "3"]))
    core.add(request("good", [2], choice=["5"]))
    outputs = drain(core)
    assert len(tokens_of(outputs["bad"])) == 3
    assert outputs["bad"][-1].error == "the structured output could not go on: planted"
    assert len(tokens_of(outputs["good"])) == 5


@pytest.mark.parametrize("ahead", [0, 1])
def test_reasoning_is_free(ahead: int) -> None:
    free = expected_tokens([5], 7, 6)
    core = make_core(ahead)
    core.add(request("r", [5], 12, choice=["4"], end=[free[2]]))
    tokens = tokens_of(drain(core)["r"])
    assert tokens[:3] == free[:3]
    assert rises(tokens[3:])
    assert len(tokens) == 7


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("reasons", [True, False])
def test_reasoning_that_the_model_may_begin(ahead: int, reasons: bool) -> None:
    """The fake's first token among those allowed is known; it begins reasoning or it does not."""
    first = tokens_of(drain_one(ahead, choice=["4"], end=[0], start=[998]))[0]
    tokens = tokens_of(
        drain_one(ahead, choice=["4"], end=[VOCAB + 5], start=[first if reasons else 998])
    )
    assert tokens[0] == first
    if reasons:
        assert tokens == expected_tokens([5], 7, 8) or not rises(tokens)
        assert len(tokens) == 8
    else:
        assert rises(tokens)
        assert len(tokens) == 4


def drain_one(ahead: int, **spec) -> list[TokenOutput]:
    core = make_core(ahead)
    core.add(request("r", [5], 8, **spec))
    return drain(core)["r"]


def test_without_grammars_such_requests_fail() -> None:
    executor = FakeExecutor()
    core = EngineCore(executor, max_num_seqs=8, max_num_batched_tokens=16)
    core.add(request("r", [1], choice=["2"]))
    assert "no tokenizer" in (drain(core)["r"][0].error or "")


def test_a_slow_grammar_holds_up_nobody_and_can_be_aborted() -> None:
    grammars = CountingGrammars()
    grammars.gate.clear()
    core = make_core(0, grammars)
    core.add(request("slow", [1], choice=["2"]))
    core.add(request("free", [1], 4))
    assert core.stats.num_waiting == 2
    seen = []
    while "free" not in [o.request_id for o in seen if o.finish_reason]:
        seen += core.step()
    assert core.has_work
    begin = time.perf_counter()
    assert core.step() == []  # waits a little, so that the loop does not spin
    assert time.perf_counter() - begin > 0.01
    core.abort(["slow"])
    assert not core.has_work
    grammars.gate.set()
    core.close()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_mix_of_lengths_aborts_and_steps(data: st.DataObject) -> None:
    core = make_core(data.draw(st.integers(0, 2)), num_blocks=12, max_model_len=30)
    outputs: dict[str, list[TokenOutput]] = {}
    aborted: set[str] = set()
    for index in range(data.draw(st.integers(1, 8))):
        name = f"r{index}"
        spec = data.draw(st.sampled_from([{}, {"choice": ["3"]}, {"choice": ["9", "4"]}]))
        core.add(request(name, [index] * data.draw(st.integers(1, 9)), 10, **spec))
        for _ in range(data.draw(st.integers(0, 3))):
            for output in core.step():
                outputs.setdefault(output.request_id, []).append(output)
        core.scheduler.check_integrity()
        if data.draw(st.booleans()) and data.draw(st.booleans()):
            core.abort([name])
            aborted.add(name)
    for _ in range(2000):
        if not core.has_work:
            break
        for output in core.step():
            outputs.setdefault(output.request_id, []).append(output)
    assert not core.has_work
    assert core.scheduler.kv_cache.num_free_blocks == 12
    core.close()
    for name, parts in outputs.items():
        if name not in aborted:
            assert [part.finish_reason is not None for part in parts].count(True) == 1


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("num_blocks", [64, 9])
def test_prompt_logprobs_are_told_once_and_in_order(ahead: int, num_blocks: int) -> None:
    core = make_core(ahead, num_blocks=num_blocks, max_model_len=34)
    prompts = [list(range(10)), list(range(20)), [3], list(range(20))]
    for index, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=10, seed=7, prompt_logprobs=0)
        core.add(AddRequest(f"r{index}", prompt, params, []))
    outputs = drain(core)
    for index, prompt in enumerate(prompts):
        parts = outputs[f"r{index}"]
        told = [entry for part in parts for entry in part.prompt_logprobs]
        assert [(e.sampled.token_id, -e.sampled.logprob) for e in told] == [
            (token, i) for i, token in enumerate(prompt) if i
        ]
        assert tokens_of(parts) == expected_tokens(prompt, 7, 10)
    assert (core.stats.num_preemptions > 0) == (num_blocks == 9)
    assert core.stats.num_generation_tokens == 40
