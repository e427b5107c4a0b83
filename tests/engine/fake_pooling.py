"""An executor without a model: a text's vector is its number of tokens and their sum.

`build` is what tests let the engine process run; `$FAKE_POOLING`, a JSON object, has the arguments.
"""

from __future__ import annotations

import json
import os
import struct
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.engine.pooling import PoolingCore
from octavo.types import EngineInfo, KVCacheLayout, PoolingInfo, PoolingResult

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.types import PoolingPlan

VOCAB_SIZE = 1000
MAX_LEN = 32


def vector_of(token_ids: list[int]) -> bytes:
    return struct.pack("<2f", len(token_ids), sum(token_ids))


class FakePoolingExecutor:
    """See the module.

    Args:
        step_s: duration of a step.
        error: raised by steps that have token 13.
    """

    def __init__(
        self,
        token_budget: int = 64,
        max_num_seqs: int = 8,
        step_s: float = 0.0,
        error: Exception | None = None,
    ) -> None:
        self.token_budget, self.max_num_seqs = token_budget, max_num_seqs
        self.step_s = step_s
        self.error = error or RuntimeError("thirteen")
        self.plans: list[PoolingPlan] = []
        self.info = EngineInfo(
            architecture="FakeModel",
            dtype="float32",
            device="cpu",
            vocab_size=VOCAB_SIZE,
            max_model_len=MAX_LEN,
            kv_cache=KVCacheLayout(0, 1, 0),
            startup_s={},
            tasks=("embed",),
            pooling=PoolingInfo(pooling_type="mean", num_dimensions=2),
        )

    def submit(self, plan: PoolingPlan) -> Future[PoolingResult]:
        self.plans.append(plan)
        assert 0 < plan.num_tokens <= self.token_budget
        assert len(plan.token_ids) == len(plan.params) <= self.max_num_seqs
        time.sleep(self.step_s)
        future: Future[PoolingResult] = Future()
        if any(13 in text for text in plan.token_ids):
            future.set_exception(self.error)
        else:
            vectors = [vector_of(text) for text in plan.token_ids]
            future.set_result(PoolingResult(plan.step_id, vectors, 1000))
        return future


@dataclass
class FakeBuilt:
    core: PoolingCore
    info: EngineInfo

    def close(self) -> None:
        pass


def build(config: EngineConfig) -> FakeBuilt:
    executor = FakePoolingExecutor(**json.loads(os.environ.get("FAKE_POOLING", "{}")))
    return FakeBuilt(PoolingCore.from_config(executor, config), executor.info)
