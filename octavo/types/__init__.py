"""Values that several rows of the house share. Imports nothing of Octavo but its errors.

What crosses a process boundary is a `msgspec.Struct`; what crosses from host to device and back
(`StepPlan`, `StepResult`) holds ints and lists, never tensors.
"""

from __future__ import annotations

from typing import Any

from octavo.types.engine import (
    ITERATION_BUCKETS,
    EngineInfo,
    EngineStats,
    KVCacheLayout,
    SchedulingPolicy,
)
from octavo.types.metering import (
    AttentionWork,
    Charge,
    DeviceTime,
    WorkModel,
)
from octavo.types.options import (
    MAX_CACHE_SALT_LEN,
    RequestOptions,
)
from octavo.types.outputs import (
    Delta,
    FinishReason,
    PositionLogprobs,
    TokenLogprob,
)
from octavo.types.pooling import (
    Pooled,
    PoolingInfo,
    PoolingParams,
    PoolingPlan,
    PoolingResult,
    PoolingType,
    Task,
)
from octavo.types.sampling import (
    MAX_BAD_WORD_LEN,
    MAX_BAD_WORDS,
    MAX_CHOICES_LEN,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_STOP_STRING_LEN,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
    StructuredOutputs,
)
from octavo.types.steps import (
    RowInit,
    StepMasks,
    StepPlan,
    StepResult,
)

__all__ = [
    "ITERATION_BUCKETS",
    "MAX_BAD_WORDS",
    "MAX_BAD_WORD_LEN",
    "MAX_CACHE_SALT_LEN",
    "MAX_CHOICES_LEN",
    "MAX_LOGIT_BIASES",
    "MAX_LOGPROBS",
    "MAX_STOP_STRINGS",
    "MAX_STOP_STRING_LEN",
    "MAX_STOP_TOKEN_IDS",
    "AttentionWork",
    "Charge",
    "Delta",
    "DeviceTime",
    "EngineInfo",
    "EngineStats",
    "FinishReason",
    "JSONObject",
    "KVCacheLayout",
    "Pooled",
    "PoolingInfo",
    "PoolingParams",
    "PoolingPlan",
    "PoolingResult",
    "PoolingType",
    "PositionLogprobs",
    "RequestOptions",
    "RowInit",
    "SamplingParams",
    "SchedulingPolicy",
    "StepMasks",
    "StepPlan",
    "StepResult",
    "StructuredOutputs",
    "Task",
    "TokenLogprob",
    "WorkModel",
]

JSONObject = dict[str, Any]
"""A decoded JSON object of unknown shape."""
