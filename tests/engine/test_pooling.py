"""The pooling core: who runs with whom, and that every request ends exactly once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.messages import AddPooling
from octavo.engine.policy import make_policy
from octavo.engine.pooling import STEP_FAILED, PoolingCore
from octavo.errors import DeviceLostError, InvalidRequestError
from octavo.types import PoolingParams
from tests.engine.fake_pooling import FakePoolingExecutor, vector_of


def core_of(policy: Any = "fcfs", **options: Any) -> tuple[PoolingCore, FakePoolingExecutor]:
    executor = FakePoolingExecutor(**options)
    return PoolingCore(executor, policy=make_policy(policy)), executor


def ask(name: str, ids: list[int], **fields: Any) -> AddPooling:
    return AddPooling(name, ids, PoolingParams(), **fields)


def drain(core: PoolingCore) -> list[list[str]]:
    """The ids of each step's outputs."""
    steps = []
    while core.has_work:
        outputs = core.step()
        assert all(output.finish_reason == "stop" for output in outputs)
        steps.append([output.request_id for output in outputs])
    return steps


def test_steps_take_whole_texts_in_order_within_the_budget() -> None:
    core, executor = core_of(token_budget=10, max_num_seqs=3)
    for name, length in {"a": 4, "b": 6, "c": 1, "d": 10, "e": 1, "f": 1, "g": 1, "h": 1}.items():
        core.add(ask(name, [1] * length))
    assert core.stats.num_waiting == 8
    assert core.stats.num_free_rows == 0
    assert drain(core) == [["a", "b"], ["c"], ["d"], ["e", "f", "g"], ["h"]]
    stats = core.stats
    assert (stats.num_waiting, stats.num_free_rows, stats.num_received) == (0, 3, 8)
    assert (stats.num_steps, stats.num_prompt_tokens, stats.device_ns) == (5, 25, 5000)
    assert [plan.step_id for plan in executor.plans] == list(range(5))


def test_lower_priorities_run_first() -> None:
    core, _ = core_of("priority", max_num_seqs=2)
    for name, priority in {"a": 5, "b": 0, "c": -1, "d": 0}.items():
        core.add(ask(name, [1], priority=priority))
    assert drain(core) == [["c", "b"], ["d", "a"]]


def test_the_fair_policy_lets_a_newcomer_through_a_flood() -> None:
    core, _ = core_of("fair", max_num_seqs=2)
    for index in range(6):
        core.add(ask(f"flood-{index}", [1] * 8, tenant="flood"))
    core.step()
    core.add(ask("small", [1], tenant="other"))
    assert "small" in drain(core)[0]


def test_what_can_never_run_is_refused() -> None:
    core, _ = core_of(token_budget=10)
    with pytest.raises(InvalidRequestError, match="11 tokens, but must have 1 to 10"):
        core.add(ask("a", [1] * 11))
    with pytest.raises(InvalidRequestError, match="0 tokens"):
        core.add(ask("a", []))
    core.add(ask("a", [1]))
    with pytest.raises(InvalidRequestError, match="already in flight"):
        core.add(ask("a", [1]))
    assert core.stats.num_received == 4
    assert drain(core) == [["a"]]


def test_a_failed_step_ends_its_requests_and_no_others() -> None:
    core, _ = core_of(max_num_seqs=2)
    for name, token in {"a": 1, "bad": 13, "c": 1}.items():
        core.add(ask(name, [token]))
    outputs = core.step()
    assert [(o.request_id, o.finish_reason, o.error) for o in outputs] == [
        ("a", "error", STEP_FAILED),
        ("bad", "error", STEP_FAILED),
    ]
    assert drain(core) == [["c"]]


def test_a_lost_device_ends_the_engine() -> None:
    core, _ = core_of(error=DeviceLostError("gone"))
    core.add(ask("bad", [13]))
    with pytest.raises(DeviceLostError):
        core.step()


Add = st.tuples(st.just("add"), st.integers(1, 10), st.integers(-2, 2), st.sampled_from("xyz"))
Operations = st.lists(
    st.one_of(Add, st.tuples(st.just("abort"), st.integers(0, 30)), st.just(("step",)))
)


@settings(max_examples=150, deadline=None)
@given(Operations, st.sampled_from(["fcfs", "priority", "fair"]), st.integers(1, 4))
def test_every_request_ends_once_or_was_aborted(
    operations: list[Any], policy: str, max_num_seqs: int
) -> None:
    core, _ = core_of(policy, token_budget=10, max_num_seqs=max_num_seqs)
    texts: dict[str, list[int]] = {}
    waiting: set[str] = set()

    def step() -> None:
        outputs = core.step()
        assert outputs or not waiting  # it advances whenever there is work
        for output in outputs:
            waiting.remove(output.request_id)
            assert output.vector == vector_of(texts[output.request_id])

    for operation, *values in operations:
        if operation == "add":
            length, priority, tenant = values
            name = f"{len(texts)}"
            texts[name] = [len(texts) + 20] * length
            waiting.add(name)
            core.add(ask(name, texts[name], priority=priority, tenant=tenant))
        elif operation == "abort":
            core.abort([f"{values[0]}", "unknown"])
            waiting.discard(f"{values[0]}")
        else:
            step()
        assert core.stats.num_waiting == len(waiting)
        assert core.has_work == bool(waiting)
    while core.has_work:
        step()
    assert not waiting
