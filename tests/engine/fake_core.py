"""An engine without a model: each request counts upwards from its prompt's last token.

The builders at the end are what tests let the engine process run. What they do is told by the
environment variable `FAKE_ENGINE`, a JSON object of `FakeCore`'s keyword arguments.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.engine.messages import TokenOutput
from octavo.errors import InsufficientMemoryError, InvalidRequestError
from octavo.types import AttentionWork, Charge, EngineInfo, EngineStats, KVCacheLayout, WorkModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.config import EngineConfig
    from octavo.engine.messages import AddRequest

VOCAB_SIZE = 259
MAX_MODEL_LEN = 4096


class FakeCore:
    """See the module.

    Args:
        step_s: duration of a step.
        die_at: after so many steps the process kills itself.
        raise_at: after so many steps `step` raises.
        hang_at: after so many steps one takes forever.
        tokens_per_step: of each request.
        max_num_running: requests that advance in a step; the others wait.
        is_metered: a request costs 1 ns of prefill and, for decoding, the number of the step in
            nanoseconds in which it ends.
    """

    def __init__(
        self,
        step_s: float = 0.0,
        die_at: int | None = None,
        raise_at: int | None = None,
        hang_at: int | None = None,
        tokens_per_step: int = 1,
        max_num_running: int = 1_000_000,
        is_metered: bool = False,
    ) -> None:
        self.step_s = step_s
        self.die_at = die_at
        self.raise_at = raise_at
        self.hang_at = hang_at
        self.tokens_per_step = tokens_per_step
        self.requests: dict[str, tuple[AddRequest, list[int]]] = {}
        self.num_steps = 0
        self.num_tokens = 0
        self.num_received = 0
        self.max_num_running = max_num_running
        self.is_metered = is_metered
        self.charges: list[tuple[str, Charge]] = []

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=min(len(self.requests), self.max_num_running),
            num_waiting=max(0, len(self.requests) - self.max_num_running),
            num_free_rows=max(0, self.max_num_running - len(self.requests)),
            num_received=self.num_received,
            num_steps=self.num_steps,
            num_generation_tokens=self.num_tokens,
        )

    def ready(self, began_ns: int) -> None:
        assert began_ns <= time.perf_counter_ns()

    def take_charges(self) -> list[tuple[str, Charge]]:
        charges, self.charges = self.charges, []
        return charges

    def add(self, request: AddRequest) -> None:
        self.num_received += 1
        if request.prompt_token_ids == [13]:
            raise InvalidRequestError("thirteen is refused")
        if request.prompt_token_ids == [14]:
            raise RuntimeError("fourteen is a bug")
        self.requests[request.request_id] = (request, [])

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            if self.requests.pop(request_id, None) is not None and self.is_metered:
                self.charges.append((request_id, Charge(1, self.num_steps)))

    def step(self) -> list[TokenOutput]:
        if self.num_steps == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.num_steps == self.raise_at:
            raise RuntimeError("planted in a step")
        if self.num_steps == self.hang_at:
            time.sleep(1000)
        time.sleep(self.step_s)
        self.num_steps += 1
        return [
            self._advance(request_id, *entry)
            for request_id, entry in list(self.requests.items())[: self.max_num_running]
        ]

    def _advance(self, request_id: str, request: AddRequest, tokens: list[int]) -> TokenOutput:
        new: list[int] = []
        reason = None
        for _ in range(self.tokens_per_step):
            token = (request.prompt_token_ids[-1] + 1 + len(tokens)) % VOCAB_SIZE
            tokens.append(token)
            new.append(token)
            if token in request.eos_token_ids and not request.params.ignore_eos:
                reason = "stop"
            elif len(tokens) == request.params.max_tokens:
                reason = "length"
            if reason is not None:
                del self.requests[request_id]
                break
        self.num_tokens += len(new)
        output = TokenOutput(request_id, new, finish_reason=reason)
        if reason is not None and self.is_metered:
            output.charge = Charge(1, self.num_steps)
        return output


@dataclass
class FakeBuilt:
    core: FakeCore
    info: EngineInfo

    def close(self) -> None:
        pass


FAKE_WORK = WorkModel(
    flops_per_token=1e6,
    flops_per_sample=1e5,
    bytes_per_token=1e4,
    weight_bytes=1e6,
    head_weight_bytes=1e5,
    attention=(AttentionWork(1e3, 1e2),),
    flops_per_s=1e12,
    bytes_per_s=1e11,
)


def fake_info(*, is_metered: bool = False) -> EngineInfo:
    return EngineInfo(
        architecture="FakeForCausalLM",
        dtype="float32",
        device="cpu",
        vocab_size=VOCAB_SIZE,
        max_model_len=MAX_MODEL_LEN,
        kv_cache=KVCacheLayout(num_blocks=1024, block_size=16, bytes_per_block=4096),
        startup_s={"load": 0.25},
        work=FAKE_WORK if is_metered else None,
    )


def build(config: EngineConfig) -> FakeBuilt:
    """Beside the core's arguments: how long it takes, and what holds for the first one alone.

    once: a path; only the one who finds the file there, and removes it, gets the core's arguments.
    start_s: seconds; slow_unless: a path, likewise: who finds the file there starts at once.
    """
    arguments = json.loads(os.environ.get("FAKE_ENGINE", "{}"))
    start_s = arguments.pop("start_s", 0.0)
    time.sleep(0.0 if _take(arguments.pop("slow_unless", None)) else start_s)
    once = arguments.pop("once", None)
    core = FakeCore(**(arguments if once is None or _take(once) else {}))
    return FakeBuilt(core, fake_info(is_metered=core.is_metered))


def _take(path: str | None) -> bool:
    """Whether the file was there; it is no longer."""
    if path is None:
        return False
    try:
        Path(path).unlink()
    except FileNotFoundError:
        return False
    return True


def build_without_memory(config: EngineConfig) -> FakeBuilt:
    raise InsufficientMemoryError("the KV cache needs 3 GiB, 1 GiB is free")


def build_with_bug(config: EngineConfig) -> FakeBuilt:
    raise KeyError("model.embed_tokens")


def build_and_die(config: EngineConfig) -> FakeBuilt:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def build_slowly(config: EngineConfig) -> FakeBuilt:
    time.sleep(1000)
    raise AssertionError
