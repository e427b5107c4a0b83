"""Steps that are queued against steps that are waited for: the same tokens, whatever the schedule.

Without a GPU the kernels run in Triton's interpreter, and graphs are computations run anew.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from octavo.attention.triton_paged import TritonAttention
from octavo.attention.tunings import Sharing, Tuning, Tunings
from octavo.attention.work import StepShape
from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest
from octavo.runner.executor import InProcessExecutor, StreamExecutor
from octavo.runner.queued_steps import QueuedSteps
from octavo.runner.rows import RowTable
from octavo.runner.runner import ModelRunner
from octavo.runner.sampler import SamplerRows
from octavo.runner.staging import Staging
from octavo.types import SamplingParams
from octavo.weights.open import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.engine.messages import TokenOutput
    from tests.conftest import TinyLlama

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported

MAX_NUM_SEQS = 6
NUM_BLOCKS = 14
SHAPES = (StepShape(1, 1), StepShape(2, 2), StepShape(4, 4), StepShape(8, 4), StepShape(16, 6))


def make_runner(path: Path, *, queued: bool, shapes: tuple[StepShape, ...] = ()) -> ModelRunner:
    config = EngineConfig(
        model=str(path),
        device="cpu",
        block_size=4,
        kv_cache_memory=2**20,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=16,
        max_model_len=64,
        num_threads=1,
    )
    checkpoint = open_checkpoint(path)
    runner = ModelRunner(config, checkpoint)
    checkpoint.close()
    if queued:
        # The runner takes this way on a GPU alone, where the kernels are fast.
        tuning = Tuning(16, 16, 4, 2, programs_per_sm=1, min_chunk=16)
        # What pays on a GPU would take the interpreter too long.
        sharing = Sharing(min_seqs=2, min_tokens=16, min_saved_bytes=1)
        long = Tuning(32, 16, 4, 2, 1, 32)
        many = replace(tuning, merged_parts=2, looks_ahead=True, max_chunk=32, most_per_sm=4)
        tunings = Tunings(tuning, long, many, min_many=3)
        backend = TritonAttention(tunings, num_sms=8, sharing=sharing)
        num_layers = len(runner.kv_caches)
        num_blocks = runner.info.kv_cache.num_blocks
        caches = [backend.allocate(runner.spec, num_blocks) for _ in range(num_layers)]
        table = RowTable(MAX_NUM_SEQS, 64, 4)
        sampler = SamplerRows(MAX_NUM_SEQS)
        steps = QueuedSteps(runner.model, backend, runner.spec, caches, table, sampler, shapes)
        if shapes:
            steps.capture(shapes)
        runner._steps = steps
    return runner


def run(core: EngineCore, requests: list[AddRequest]) -> dict[str, list[Any]]:
    """Tokens and log-probabilities of each request; they arrive one by one while others run."""
    waiting = requests[::-1]
    answers: dict[str, list[Any]] = {request.request_id: [] for request in requests}
    step = 0
    while waiting or core.has_work:
        if waiting and step % 2 == 0:
            core.add(waiting.pop())
        outputs: list[TokenOutput] = core.step()
        for output in outputs:
            assert output.finish_reason in (None, "length"), output
            reports = [(e.sampled.token_id, round(e.sampled.logprob, 3)) for e in output.logprobs]
            answers[output.request_id].append((output.token_ids, reports))
        core.scheduler.check_integrity()
        step += 1
    return answers


def make_requests(**params: Any) -> list[AddRequest]:
    rng = np.random.default_rng(3)
    shared = rng.integers(3, 380, 9).tolist()
    lengths = [1, 5, 13, 30, 4, 22, 8, 17]
    return [
        AddRequest(
            f"r{i}",
            (shared if i % 2 else []) + rng.integers(3, 380, length).tolist(),
            SamplingParams(max_tokens=6 + i, ignore_eos=True, **params),
            [],
        )
        for i, length in enumerate(lengths)
    ]


def core_of(runner: ModelRunner, num_blocks: int = NUM_BLOCKS) -> EngineCore:
    executor = StreamExecutor(runner) if runner.runs_ahead else InProcessExecutor(runner)
    core = EngineCore(
        executor,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=16,
        num_steps_ahead=executor.num_steps_ahead,
        seed=1,
    )
    # Fewer blocks than there are, so that requests are preempted.
    core.scheduler.kv_cache = type(core.scheduler.kv_cache)(num_blocks, 4)
    return core


@pytest.mark.parametrize("shapes", [(), SHAPES], ids=["kernel by kernel", "graphs"])
def test_same_tokens_as_steps_that_are_waited_for(
    tiny_llama: TinyLlama, shapes: tuple[StepShape, ...]
) -> None:
    # Older interpreters fail under numpy 2.4, which no longer makes numbers of arrays.
    pytest.importorskip("triton", minversion="3.8", reason="triton >= 3.8 is not installed")
    if HAS_GPU:
        pytest.skip("the kernels are compiled in this process")
    requests = make_requests(temperature=0.0)
    requests[2] = AddRequest("r2", requests[2].prompt_token_ids, SamplingParams(
        temperature=0.0, max_tokens=9, ignore_eos=True, logprobs=2), [])  # fmt: skip
    eager = core_of(make_runner(tiny_llama(), queued=False))
    expected = run(eager, requests)
    queued = core_of(make_runner(tiny_llama(), queued=True, shapes=shapes))
    assert run(queued, requests) == expected
    assert queued.stats.num_preemptions > 0
    assert queued.stats.prefix_cache_hits > 0


@pytest.mark.parametrize("shapes", [(), SHAPES], ids=["kernel by kernel", "graphs"])
def test_a_prefix_in_common_is_read_once(
    tiny_llama: TinyLlama, shapes: tuple[StepShape, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", minversion="3.8", reason="triton >= 3.8 is not installed")
    if HAS_GPU:
        pytest.skip("the kernels are compiled in this process")
    rng = np.random.default_rng(4)
    prefix = rng.integers(3, 380, 32).tolist()
    params = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
    requests = [
        AddRequest(f"r{i}", prefix + rng.integers(3, 380, i + 1).tolist(), params, [])
        for i in range(4)
    ]
    expected = run(core_of(make_runner(tiny_llama(), queued=False), 64), requests)
    runner = make_runner(tiny_llama(), queued=True, shapes=shapes)
    found: list[int] = []
    find_shared = TritonAttention.find_shared

    def find(self: TritonAttention, *args: Any) -> Any:
        shared = find_shared(self, *args)
        found.append(len(shared))
        return shared

    monkeypatch.setattr(TritonAttention, "find_shared", find)
    assert run(core_of(runner, 64), requests) == expected
    assert max(found) == 1


def test_random_rows_depend_on_their_seed_alone(tiny_llama: TinyLlama) -> None:
    pytest.importorskip("triton", minversion="3.8", reason="triton >= 3.8 is not installed")
    if HAS_GPU:
        pytest.skip("the kernels are compiled in this process")
    runner = make_runner(tiny_llama(), queued=True, shapes=SHAPES)
    requests = make_requests(temperature=0.9, seed=5)[:4]
    requests += make_requests(temperature=0.9, seed=5, top_p=0.8)[4:6]
    together = run(core_of(runner), requests)
    for request in requests:
        assert run(core_of(runner), [request])[request.request_id] == together[request.request_id]


def test_staged_sections_arrive_in_their_shapes() -> None:
    staging = Staging(torch.device("cpu"), num_buffers=2)
    rng = np.random.default_rng(0)
    for _ in range(5):
        shapes = [(3,), (2, 5), (0, 4), (4, 8), (1,), tuple(rng.integers(0, 90, 2))]
        sections = [rng.integers(-9, 9, shape).astype(np.int32) for shape in shapes]
        for section, view in zip(sections, staging.send(sections), strict=True):
            assert np.array_equal(view.numpy(), section)
            assert view.storage_offset() % 4 == 0
