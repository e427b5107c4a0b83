"""The Python interface: how requests are treated, whatever they sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from octavo import LLM, RequestOptions, SamplingParams
from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import TinyLlama

GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
PROMPT = {"prompt_token_ids": [3 + i % 300 for i in range(70)]}


@pytest.fixture
def llm(tiny_llama: TinyLlama) -> Iterator[LLM]:
    llm = LLM(str(tiny_llama()), device="cpu", kv_cache_memory=2**21, num_threads=1)
    yield llm
    llm.close()


def test_prefixes_are_shared_within_a_salt_alone(llm: LLM) -> None:
    mine, yours = RequestOptions(cache_salt="mine"), RequestOptions(cache_salt="yours")
    (first,) = llm.generate(PROMPT, GREEDY, options=mine)
    again, other = llm.generate([PROMPT, PROMPT], GREEDY, options=[mine, yours])
    assert first.num_cached_tokens == other.num_cached_tokens == 0
    assert again.num_cached_tokens == 64
    tokens = [answer.outputs[0].token_ids for answer in (first, again, other)]
    assert tokens[0] == tokens[1] == tokens[2]


def test_a_time_limit_ends_a_request_with_what_it_has(llm: LLM) -> None:
    long = SamplingParams(temperature=0.0, max_tokens=180, ignore_eos=True)
    limited, free = llm.generate(
        [PROMPT, PROMPT], long, options=[RequestOptions(timeout_s=0.05), RequestOptions()]
    )
    assert limited.outputs[0].finish_reason == "timeout"
    assert len(limited.outputs[0].token_ids) < 180
    assert free.outputs[0].finish_reason == "length"
    assert free.outputs[0].token_ids[: len(limited.outputs[0].token_ids)] == (
        limited.outputs[0].token_ids
    )
    assert llm.stats.num_running == llm.stats.num_waiting == 0
    assert llm.stats.kv_cache_usage == 0.0


def test_what_would_be_ignored_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        llm.generate(PROMPT, GREEDY, options=RequestOptions(priority=1))
    assert refused.value.param == "priority"
    with pytest.raises(InvalidRequestError, match="1 options"):
        llm.generate([PROMPT, PROMPT], GREEDY, options=[RequestOptions()])
    assert llm.stats.num_received == 0


def test_priority_decides_who_runs_first(tiny_llama: TinyLlama) -> None:
    llm = LLM(
        str(tiny_llama()), device="cpu", kv_cache_memory=2**21, num_threads=1, max_num_seqs=1,
        scheduling_policy="priority",
    )  # fmt: skip
    try:
        assert llm.info.scheduling_policy == "priority"
        options = [RequestOptions(priority=p, timeout_s=60) for p in (2, 1)]
        late, early = llm.generate([PROMPT, PROMPT], GREEDY, options=options)
        # The second computed the prompt; the first found it.
        assert (late.num_cached_tokens, early.num_cached_tokens) == (64, 0)
    finally:
        llm.close()
