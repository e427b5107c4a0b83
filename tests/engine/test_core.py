"""The engine's loop over a fake device."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest

from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest, TokenOutput
from octavo.errors import DeviceLostError, InvalidRequestError
from octavo.types import SamplingParams
from tests.engine.fake_executor import FakeExecutor, expected_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable


def make_core(executor: FakeExecutor, *, budget: int = 16, ahead: int = 0, **kwargs) -> EngineCore:
    return EngineCore(
        executor,
        max_num_seqs=executor.max_num_seqs,
        max_num_batched_tokens=budget,
        num_steps_ahead=ahead,
        **kwargs,
    )


def message(request_id: str, prompt: Iterable[int], max_tokens: int = 8, **kwargs) -> AddRequest:
    fields = {"seed": 7, "ignore_eos": False, **kwargs}
    eos = fields.pop("eos", [])
    salt = fields.pop("salt", "")
    params = SamplingParams(max_tokens=max_tokens, **fields)
    return AddRequest(request_id, list(prompt), params, eos, cache_salt=salt)


def drain(core: EngineCore) -> dict[str, list[TokenOutput]]:
    outputs: dict[str, list[TokenOutput]] = {}
    for _ in range(10_000):
        if not core.has_work:
            break
        for output in core.step():
            outputs.setdefault(output.request_id, []).append(output)
        core.scheduler.check_integrity()
    assert not core.has_work
    assert core.scheduler.kv_cache.num_free_blocks == core.scheduler.kv_cache.num_blocks
    return outputs


def tokens_of(outputs: list[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("budget", [8, 16, 100])
def test_tokens_are_those_of_the_token_list(ahead: int, caching: bool, budget: int) -> None:
    core = make_core(FakeExecutor(), budget=budget, ahead=ahead, enable_prefix_caching=caching)
    prompts = {f"r{i}": [i % 3, *range(i)] for i in range(20)}
    for name, prompt in prompts.items():
        core.add(message(name, prompt, 9))
    outputs = drain(core)
    for name, prompt in prompts.items():
        assert tokens_of(outputs[name]) == expected_tokens(prompt, 7, 9)
        assert [o.finish_reason for o in outputs[name]] == [None] * 8 + ["length"]
    stats = core.stats
    assert stats.num_generation_tokens == 20 * 9
    assert stats.num_prompt_tokens == sum(map(len, prompts.values()))
    assert (stats.prefix_cache_queries > 0) == caching
    assert stats.scheduler_ns > 0
    assert stats.device_ns == 1000 * stats.num_steps


def test_what_is_told_of_times_and_of_the_sizes_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000, 10**9, 1000))
    monkeypatch.setattr("octavo.engine.core.perf_counter_ns", lambda: next(now))
    core = make_core(FakeExecutor(max_num_seqs=1))
    core.add(message("a", [1, 2, 3], 4))
    core.add(message("b", [1, 2, 3, 4], 4))
    begin = next(now)
    outputs = drain(core)
    for name, others in (("a", outputs["a"]), ("b", outputs["b"])):
        first, *later = others
        assert first.prefill_ns > 0
        assert first.queue_ns > 0
        assert {(o.queue_ns, o.prefill_ns) for o in later} == {(0, 0)}, name
    first = outputs["a"][0]
    assert first.queue_ns + first.prefill_ns < next(now) - begin + 3000
    assert outputs["b"][0].queue_ns > first.queue_ns + first.prefill_ns  # it waited for the row
    stats = core.stats
    *counts, total = stats.iteration_tokens
    assert counts == [6, 2, *[0] * 12]  # of one token, and of up to eight
    assert total == 3 + 4 + 6
    assert (stats.num_cached_prompt_tokens, stats.num_deferred) == (0, 0)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_failed_step_ends_its_requests_alone(
    ahead: int, caplog: pytest.LogCaptureFixture
) -> None:
    executor = FakeExecutor(max_num_seqs=2)
    executor.fail_steps = {3}
    core = make_core(executor, ahead=ahead)
    for i in range(4):
        core.add(message(f"r{i}", [1, 2, 3, 4, 5, i]))
    with caplog.at_level(logging.ERROR):
        outputs = drain(core)
    reasons = [outputs[f"r{i}"][-1].finish_reason for i in range(4)]
    assert reasons == ["error", "error", "length", "length"]
    assert "planted" not in (outputs["r0"][-1].error or "planted")
    assert "planted failure" in caplog.text
    for i in (2, 3):
        assert tokens_of(outputs[f"r{i}"]) == expected_tokens([1, 2, 3, 4, 5, i], 7, 8)


def test_an_executor_that_raises_at_submission_is_a_failed_step() -> None:
    class Broken(FakeExecutor):
        def submit(self, plan):
            if plan.step_id == 0:
                raise OSError("no device")
            return super().submit(plan)

    core = make_core(Broken())
    core.add(message("a", [1]))
    assert [o.finish_reason for o in core.step()] == ["error"]
    core.add(message("b", [1]))
    assert tokens_of(drain(core)["b"]) == expected_tokens([1], 7, 8)


def test_ends_at_eos_stop_ids_and_limits() -> None:
    prompt = [5, 6, 7]
    tokens = expected_tokens(prompt, 7, 61)
    third = tokens.index(tokens[2]) + 1
    core = make_core(FakeExecutor())
    core.add(message("eos", prompt, eos=[tokens[2]]))
    core.add(message("ignored", prompt, eos=[tokens[2]], ignore_eos=True))
    core.add(message("stop", prompt, eos=[2000], stop_token_ids=[tokens[2]]))
    core.add(message("both", prompt, eos=[tokens[2]], stop_token_ids=[tokens[2]]))
    core.add(message("context", prompt, 1000))
    core.add(message("endless", prompt, None))
    outputs = drain(core)
    ends = {k: (len(v), v[-1].finish_reason, v[-1].stop_reason) for k, v in outputs.items()}
    assert ends == {
        "eos": (third, "stop", None),
        "ignored": (8, "length", None),
        "stop": (third, "stop", tokens[2]),
        "both": (third, "stop", None),
        "context": (61, "length", None),
        "endless": (61, "length", None),
    }


def test_refuses_with_numbers_what_can_never_run() -> None:
    core = make_core(FakeExecutor(num_blocks=4, block_size=4))
    with pytest.raises(InvalidRequestError, match=r"16 tokens.*KV cache of 16 .*4 blocks of 4"):
        core.add(message("a", range(16)))
    core.add(message("b", range(15), 1000))
    with pytest.raises(InvalidRequestError, match="in flight"):
        core.add(message("b", [1]))
    # Two tokens: one in the last slot, one that needs none.
    assert tokens_of(drain(core)["b"]) == expected_tokens(list(range(15)), 7, 2)
    core = make_core(FakeExecutor(max_model_len=10))
    with pytest.raises(InvalidRequestError, match=r"10 tokens.*context of 10") as caught:
        core.add(message("a", range(10)))
    assert caught.value.code == "context_length_exceeded"


def test_seeds_are_drawn_where_none_is_given() -> None:
    def run(seed: int | None) -> list[list[int]]:
        core = make_core(FakeExecutor(), seed=seed)
        for name in "ab":
            core.add(message(name, [1, 2], seed=None))
        outputs = drain(core)
        return [tokens_of(outputs[name]) for name in "ab"]

    assert run(1) == run(1) != run(2)
    assert run(1)[0] != run(1)[1]
    assert run(None) != run(None)


@pytest.mark.parametrize("ahead", [0, 1])
def test_preempted_requests_go_on_the_same(ahead: int) -> None:
    core = make_core(FakeExecutor(num_blocks=10, block_size=4), ahead=ahead)
    prompts = {f"r{i}": [i] * (3 + i) for i in range(6)}
    for name, prompt in prompts.items():
        core.add(message(name, prompt, 20))
    outputs = drain(core)
    assert core.stats.num_preemptions > 0
    for name, prompt in prompts.items():
        assert tokens_of(outputs[name]) == expected_tokens(prompt, 7, 20)


def test_abort_frees_at_once_and_says_nothing() -> None:
    core = make_core(FakeExecutor(max_num_seqs=2))
    for i in range(3):
        core.add(message(f"r{i}", [1, i, 3]))
    core.step()
    core.abort(["r0", "r2", "unknown"])
    core.scheduler.check_integrity()
    assert (core.stats.num_running, core.stats.num_waiting) == (1, 0)
    assert set(drain(core)) == {"r1"}


def test_one_salt_shares_and_two_salts_never_do() -> None:
    core = make_core(FakeExecutor())
    prompt = list(range(12))
    cached = []
    for name, salt in [("a", "x"), ("b", "y"), ("c", "x"), ("d", "")]:
        core.add(message(name, prompt, salt=salt))
        cached.append(drain(core)[name][-1].num_cached_tokens)
    # Never the whole prompt: its last block is computed again.
    assert cached == [0, 0, 8, 0]
    assert (core.stats.prefix_cache_queries, core.stats.prefix_cache_hits) == (48, 8)


def test_requests_that_arrive_together_compute_a_shared_prefix_once() -> None:
    executor = FakeExecutor()
    core = make_core(executor, budget=16)
    prefix = list(range(24))
    for i in range(8):
        core.add(message(f"r{i}", [*prefix, 100 + i], 1))
    outputs = drain(core)
    for i in range(8):
        assert tokens_of(outputs[f"r{i}"]) == expected_tokens([*prefix, 100 + i], 7, 1)
        assert outputs[f"r{i}"][-1].num_cached_tokens == (24 if i else 0)
    assert sum(plan.num_tokens for plan in executor.plans) == 24 + 8


def test_a_follower_computes_for_itself_when_its_leader_goes() -> None:
    executor = FakeExecutor()
    core = make_core(executor, budget=8)
    for name in "abc":
        core.add(message(name, range(30), 2))
    core.step()
    core.abort(["a"])
    outputs = drain(core)
    assert set(outputs) == {"b", "c"}
    for name in "bc":
        assert tokens_of(outputs[name]) == expected_tokens(list(range(30)), 7, 2)
    assert outputs["b"][-1].num_cached_tokens == 8
    assert outputs["c"][-1].num_cached_tokens == 28


def test_decodes_go_first_and_prompts_are_chunked() -> None:
    executor = FakeExecutor()
    core = make_core(executor, budget=8)
    core.add(message("short", [1], 20))
    core.step()
    core.add(message("long", range(2, 40), 2))
    for _ in range(5):
        assert "short" in {output.request_id for output in core.step()}
    assert [plan.num_new_tokens for plan in executor.plans] == [[1]] + [[1, 7]] * 5


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_lost_device_ends_the_engine(ahead: int) -> None:
    class Lost(FakeExecutor):
        def submit(self, plan):
            future = super().submit(plan)
            if plan.step_id == 2:
                future = Future()
                future.set_exception(DeviceLostError("cuda:0 is lost"))
            return future

    core = make_core(Lost(), ahead=ahead)
    core.add(message("a", [1]))
    with pytest.raises(DeviceLostError, match="cuda:0 is lost"):
        drain(core)


def test_requests_of_one_prompt_compute_it_once() -> None:
    """What `n` answers to a prompt cost: it once, and the block that each one writes into."""
    executor = FakeExecutor(block_size=4)
    core = make_core(executor)
    prompt = list(range(30))
    for i in range(4):
        core.add(message(f"r{i}", prompt, max_tokens=1))
    outputs = drain(core)
    assert [tokens_of(outputs[f"r{i}"]) for i in range(4)] == [expected_tokens(prompt, 7, 1)] * 4
    computed = sum(plan.num_tokens for plan in executor.plans)
    assert computed == len(prompt) + 3 * (len(prompt) % 4)
