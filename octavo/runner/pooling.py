"""Owns a model that texts are pooled with, and runs steps of whole texts.

Nothing is kept between steps: no KV cache, no rows. Knows nothing of waiting requests.
"""

from __future__ import annotations

import itertools
import logging
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.attention.interface import AttentionSpec, BatchLayout
from octavo.attention.ragged import RaggedAttention
from octavo.errors import ConfigError, DeviceLostError, UnsupportedModelError
from octavo.layers.batch import ForwardBatch
from octavo.models.base import BuildContext
from octavo.models.registry import find_pooled_class
from octavo.runner.loader import load_weights, model_bytes, read_config
from octavo.runner.memory import check_weights_fit, refuse_if_full
from octavo.runner.options import (
    context_length,
    describe_device,
    open_device,
    pick_dtype,
    pick_method,
)
from octavo.runner.pooler import embeddings, label_activation, label_scores, pool
from octavo.runner.work import work_model
from octavo.types import (
    EngineInfo,
    KVCacheLayout,
    PoolingInfo,
    PoolingParams,
    PoolingPlan,
    PoolingResult,
)
from octavo.weights.sentence_transformers import SentenceFiles, read_sentence_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo.config import EngineConfig
    from octavo.models.pooled import PooledModel
    from octavo.types import PoolingType, Task
    from octavo.weights.checkpoint import Checkpoint

logger = logging.getLogger("octavo")

CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 1024, 32768
CPU_NUM_SEQS, GPU_NUM_SEQS = 256, 1024


class PoolingRunner:
    """See the module.

    Args:
        config: flags.
        checkpoint: read in here; may be closed afterwards.

    Attributes:
        token_budget: tokens that a step may have; at least one whole text's.
        max_num_seqs: texts that a step may have.

    Raises:
        StartupError: the checkpoint, the flags or the memory do not allow it.
    """

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        marks = [("", time.perf_counter())]
        model_class = find_pooled_class(checkpoint.architecture)
        model_config = read_config(checkpoint, model_class)
        shape = model_class.read_shape(model_config)
        files = read_sentence_files(checkpoint.path) if checkpoint.path.is_dir() else None

        self.device = open_device(config)
        dtype = pick_dtype(config, checkpoint, self.device)
        model_len = context_length(config, shape.max_position)
        if config.max_model_len is None and files is not None and files.max_len is not None:
            model_len = min(model_len, files.max_len)
        method = pick_method(config, checkpoint, self.device, dtype)
        context = BuildContext(dtype, method, model_len)
        self._backend = RaggedAttention(is_causal=model_class.is_causal)
        self._spec = AttentionSpec(
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=dtype,
            device=self.device,
            block_size=1,
            windows=frozenset(shape.windows),
            soft_cap=shape.soft_cap,
        )
        why_not = self._backend.why_not(self._spec)
        if why_not is not None:
            raise UnsupportedModelError(f"{checkpoint.architecture} cannot be pooled: {why_not}")
        on_cpu = self.device.type == "cpu"
        self.token_budget = max(
            model_len,
            config.max_num_batched_tokens or (CPU_TOKEN_BUDGET if on_cpu else GPU_TOKEN_BUDGET),
        )
        self.max_num_seqs = config.max_num_seqs or (CPU_NUM_SEQS if on_cpu else GPU_NUM_SEQS)

        check_weights_fit(
            model_bytes(model_class, model_config, context, checkpoint), dtype, self.device
        )
        with torch.device(self.device):
            self.model: PooledModel = model_class(model_config, context)
        marks.append(("model", time.perf_counter()))
        load_weights(self.model, checkpoint, dtype)
        marks.append(("weights", time.perf_counter()))
        self._caches = [self._backend.allocate(self._spec, 0)] * shape.num_layers
        tasks = _tasks(config, checkpoint.architecture, self.model)
        self._activation = label_activation(model_config, self.model.num_labels)
        self._pooling = _pooling_info(config, model_config, self.model, files)
        with refuse_if_full(
            "a step beside the weights",
            f"try --max-num-batched-tokens {max(self.token_budget // 4, 1)}",
        ):
            self._warm_up(tasks[0], model_len)
        marks.append(("warm_up", time.perf_counter()))
        is_causal = model_class.is_causal
        work = (
            work_model(self.model, shape, self._spec, is_causal=is_causal)
            if config.metering
            else None
        )
        marks.append(("rates", time.perf_counter()))
        self.info = EngineInfo(
            architecture=checkpoint.architecture,
            dtype=str(dtype).removeprefix("torch."),
            device=describe_device(self.device),
            vocab_size=shape.vocab_size,
            max_model_len=model_len,
            kv_cache=KVCacheLayout(0, 1, 0),
            startup_s={name: end - begin for (_, begin), (name, end) in itertools.pairwise(marks)},
            tasks=tasks,
            pooling=self._pooling,
            work=work,
        )

    @torch.inference_mode()
    def execute(self, plan: PoolingPlan) -> PoolingResult:
        """Run one step to its end."""
        begin = time.perf_counter_ns()
        order = sorted(range(len(plan.token_ids)), key=lambda i: len(plan.token_ids[i]))
        texts = [plan.token_ids[i] for i in order]
        params = [plan.params[i] for i in order]
        states = self.model.hidden_states(self._batch(texts, params))
        lengths = [len(text) for text in texts]
        if self.model.num_labels:
            logits = self.model.logits(pool(states, lengths, "cls").to(states.dtype))
            found = label_scores(logits, params, self._activation)
        else:
            pooled = pool(states, lengths, self._pooling.pooling_type)
            found = embeddings(pooled, params, is_normalized=self._pooling.is_normalized)
        vectors = [b""] * len(order)
        for index, vector in zip(order, found, strict=True):
            vectors[index] = vector
        return PoolingResult(plan.step_id, vectors, time.perf_counter_ns() - begin)

    def _batch(self, texts: Sequence[Sequence[int]], params: Sequence[PoolingParams]) -> Any:
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        starts = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(lengths, out=starts[1:])
        layout = BatchLayout(
            query_starts=starts,
            context_lens=np.zeros(len(texts), dtype=np.int64),
            block_tables=np.zeros((len(texts), 0), dtype=np.int64),
        )
        positions = layout.positions
        token_types = None
        if self.model.num_token_types > 1 and any(p.second_start is not None for p in params):
            seconds = np.array(
                [length if p.second_start is None else p.second_start
                 for p, length in zip(params, lengths, strict=True)], dtype=np.int64,
            )  # fmt: skip
            token_types = self._to_device((positions >= seconds[layout.seq_of_token]).astype(int))
        token_ids = np.fromiter(itertools.chain.from_iterable(texts), np.int64, int(starts[-1]))
        return ForwardBatch(
            token_ids=self._to_device(token_ids),
            positions=self._to_device(positions),
            logit_indices=None,
            backend=self._backend,
            meta=self._backend.plan(self._spec, layout),
            kv_caches=self._caches,
            token_types=token_types,
        )

    def _to_device(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device)

    def _warm_up(self, task: Task, model_len: int) -> None:
        """Run a small step and one of the whole budget, so that no request finds out that it does
        not fit.
        """
        params = PoolingParams(task=task)
        self.execute(PoolingPlan(0, [[0] * min(model_len, 8)], [params]))
        if self.device.type == "cuda":
            full = min(model_len, self.token_budget)
            num_texts = max(1, self.token_budget // full)
            self.execute(PoolingPlan(0, [[0] * full] * num_texts, [params] * num_texts))


class PoolingExecutor:
    """One `PoolingRunner`, called from the engine's own thread (`engine.pooling.PoolingExecutor`).

    Attributes:
        info: what was loaded.
        token_budget, max_num_seqs: tokens and texts that a step may have.
    """

    def __init__(self, runner: PoolingRunner) -> None:
        self.runner = runner
        self.info = runner.info
        self.token_budget, self.max_num_seqs = runner.token_budget, runner.max_num_seqs

    def submit(self, plan: PoolingPlan) -> Future[PoolingResult]:
        """Run a step; the future is done."""
        future: Future[PoolingResult] = Future()
        try:
            future.set_result(self.runner.execute(plan))
        except Exception as error:
            future.set_exception(self._device_error(error) or error)
        return future

    def _device_error(self, error: Exception) -> DeviceLostError | None:
        """What a step's failure means, if the device takes no further work."""
        device = self.runner.device
        if device.type == "cuda":
            try:
                torch.cuda.synchronize(device)
            except RuntimeError:  # sticky: every call fails from now on
                return DeviceLostError(f"{device} is lost: {error}")
        return None

    def close(self) -> None:
        """Drop the model."""
        del self.runner


def _tasks(config: EngineConfig, architecture: str, model: PooledModel) -> tuple[Task, ...]:
    """What the model does, as far as `--task` lets it.

    Raises:
        ConfigError: it cannot do what the flag asks for.
    """
    if not model.num_labels:
        if config.task == "classify":
            raise ConfigError(
                f"--task {config.task}: {architecture} has no labels, use --task embed"
            )
        return ("embed",)
    can: tuple[Task, ...] = ("classify", "score") if model.num_labels == 1 else ("classify",)
    if config.task == "auto":
        return can
    if config.task not in can:
        raise ConfigError(
            f"--task {config.task}: {architecture} with {model.num_labels} labels can only "
            f"{' or '.join(can)}"
        )
    return (config.task,)


def _pooling_info(
    config: EngineConfig,
    model_config: Mapping[str, Any],
    model: PooledModel,
    files: SentenceFiles | None,
) -> PoolingInfo:
    if model.num_labels:
        if config.pooling_type not in ("auto", "cls"):
            raise ConfigError(
                f"--pooling-type {config.pooling_type}: a classifier reads its first token's state"
            )
        labels = model_config.get("id2label") or {}
        return PoolingInfo(
            pooling_type="cls",
            num_dimensions=model.num_labels,
            labels=[str(labels[key]) for key in sorted(labels, key=int)],
            has_token_types=model.num_token_types > 1,
        )
    lengths = model_config.get("matryoshka_dimensions")
    return PoolingInfo(
        pooling_type=_pooling_type(config, model, files),
        num_dimensions=model.hidden_size,
        is_normalized=True if files is None else files.is_normalized,
        is_matryoshka=bool(model_config.get("is_matryoshka") or lengths),
        matryoshka_dimensions=[int(length) for length in lengths or ()],
        has_token_types=model.num_token_types > 1,
        lowercases=files is not None and files.lowercases,
    )


def _pooling_type(
    config: EngineConfig, model: PooledModel, files: SentenceFiles | None
) -> PoolingType:
    """The flag's, the folder's, or the family's usual one."""
    if config.pooling_type != "auto":
        return config.pooling_type
    if files is not None and files.pooling_type is not None:
        return files.pooling_type
    usual: PoolingType = "last" if model.is_causal else "cls"
    logger.warning(
        "the model's folder does not say how it pools: embeddings are the hidden state of the %s "
        "token; --pooling-type says otherwise",
        "last" if usual == "last" else "first",
    )
    return usual
