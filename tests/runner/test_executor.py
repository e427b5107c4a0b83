from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from octavo.config import EngineConfig
from octavo.engine.core import STEP_FAILED, EngineCore
from octavo.engine.messages import AddRequest
from octavo.errors import ConfigError
from octavo.runner.executor import InProcessExecutor, ThreadExecutor, make_executor
from octavo.runner.runner import ModelRunner
from octavo.types import SamplingParams
from octavo.weights.open import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.engine.messages import TokenOutput
    from tests.conftest import TinyLlama

Executor = InProcessExecutor | ThreadExecutor


@pytest.fixture
def config(tiny_llama: TinyLlama) -> EngineConfig:
    return EngineConfig(
        model=str(tiny_llama()),
        device="cpu",
        kv_cache_memory=2**20,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        num_threads=1,
    )


def made(config: EngineConfig, kind: type[Executor]) -> Executor:
    checkpoint = open_checkpoint(Path(config.model))
    try:
        if kind is InProcessExecutor:
            return InProcessExecutor(ModelRunner(config, checkpoint))
        return ThreadExecutor(config, checkpoint)
    finally:
        checkpoint.close()


@pytest.fixture(params=[InProcessExecutor, ThreadExecutor])
def executor(request: pytest.FixtureRequest, config: EngineConfig) -> Iterator[Executor]:
    result = made(config, request.param)
    yield result
    result.close()


def core_of(executor: Executor) -> EngineCore:
    return EngineCore(
        executor,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        num_steps_ahead=executor.num_steps_ahead,
    )


def add(core: EngineCore, name: str, num_tokens: int) -> None:
    seed = ord(name)
    prompt = [(seed * 7 + i * i) % 380 for i in range(5 + seed % 20)]
    params = SamplingParams(max_tokens=num_tokens, temperature=0.9, seed=seed)
    core.add(AddRequest(name, prompt, params, []))


class Outputs:
    """Tokens and errors by request, as steps bring them."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.errors: dict[str, str | None] = {}

    def take(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
            if output.finish_reason == "error":
                self.errors[output.request_id] = output.error


def alone(config: EngineConfig, names: str, num_tokens: int) -> dict[str, list[int]]:
    """Each request by itself, step by step."""
    executor = made(config, InProcessExecutor)
    outputs = Outputs()
    for name in names:
        core = core_of(executor)
        add(core, name, num_tokens)
        while core.has_work:
            outputs.take(core.step())
    executor.close()
    return outputs.tokens


def test_running_ahead_changes_no_token(executor: Executor, config: EngineConfig) -> None:
    core, outputs = core_of(executor), Outputs()
    names = "abcdefgh"
    for name in names:
        add(core, name, 12)
        outputs.take(core.step())
    while core.has_work:
        outputs.take(core.step())
    assert outputs.errors == {}
    assert outputs.tokens == alone(config, names, 12)
    assert core.stats.device_ns > 0


@pytest.mark.parametrize("where", ["model", "sampler"])
def test_a_failed_step_takes_nobody_with_it(
    executor: Executor, config: EngineConfig, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that come with the step planned while the failing one ran are none of its."""
    core, outputs = core_of(executor), Outputs()
    add(core, "a", 12)
    add(core, "b", 12)
    for _ in range(6):
        outputs.take(core.step())

    def fail(*args: Any) -> Any:
        monkeypatch.undo()  # once
        raise RuntimeError("planted")

    if where == "model":
        monkeypatch.setattr(executor.runner.model, "forward", fail)
    else:
        monkeypatch.setattr("octavo.runner.steps.sample", fail)
    num_before = len(outputs.tokens["a"])
    outputs.take(core.step())
    for name in "cde":  # the first of them run in the next step, on rows that the failed one had
        add(core, name, 12)
    while core.has_work:
        outputs.take(core.step())
    assert outputs.errors == {"a": STEP_FAILED, "b": STEP_FAILED}
    assert len(outputs.tokens["a"]) <= num_before + 1
    expected = alone(config, "cde", 12)
    assert {name: outputs.tokens[name] for name in "cde"} == expected
    core.scheduler.check_integrity()


@pytest.mark.parametrize(
    ("asked", "kind"),
    [(None, InProcessExecutor), (False, InProcessExecutor), (True, ThreadExecutor)],
)
def test_a_cpu_waits_unless_it_is_asked_not_to(
    config: EngineConfig, asked: bool | None, kind: type[Executor]
) -> None:
    checkpoint = open_checkpoint(Path(config.model))
    config = msgspec.structs.replace(config, async_scheduling=asked)
    executor = make_executor(config, checkpoint)
    checkpoint.close()
    assert type(executor) is kind
    executor.close()


def test_failures_to_start_come_through(config: EngineConfig) -> None:
    wrong = msgspec.structs.replace(config, max_model_len=100_000)
    with pytest.raises(ConfigError, match="--max-model-len 100000"):
        made(wrong, ThreadExecutor)
