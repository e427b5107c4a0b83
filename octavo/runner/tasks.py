"""Whether a checkpoint is to generate or to pool, by its files and `--task`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import ConfigError
from octavo.models.registry import only_pools
from octavo.weights.sentence_transformers import is_sentence_model

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.weights.checkpoint import Checkpoint


_WITHOUT_CACHE: dict[str, tuple[Any, ...]] = {
    "block_size": (),
    "gpu_memory_utilization": (),
    "kv_cache_memory": (),
    "kv_cache_dtype": (),
    "attention_backend": (),
    "async_scheduling": (False,),
    "seed": (),
}
"""Flags of caches, steps ahead and sampling, none of which pooling has: what else than their
defaults is true of it all the same."""


def is_pooled(config: EngineConfig, checkpoint: Checkpoint) -> bool:
    """Whether the engine makes vectors, not text.

    A folder that sentence-transformers saved, and an architecture without an output layer, pool.

    Raises:
        ConfigError: the flag asks for text from a model that has none, or another flag is of no use
            for what the engine is to do.
    """
    pools = _is_pooled(config, checkpoint)
    if not pools and config.pooling_type != "auto":
        raise ConfigError("--pooling-type is for embeddings: give --task embed too")
    if pools:
        _check_flags(config)
    return pools


def _is_pooled(config: EngineConfig, checkpoint: Checkpoint) -> bool:
    architecture = checkpoint.architecture
    if config.task == "generate" and only_pools(architecture):
        raise ConfigError(f"--task generate: {architecture} makes vectors, use --task embed")
    if config.task == "auto":
        return only_pools(architecture) or (
            checkpoint.path.is_dir() and is_sentence_model(checkpoint.path)
        )
    return config.task != "generate"


def _check_flags(config: EngineConfig) -> None:
    for field in msgspec.structs.fields(config):
        value = getattr(config, field.name)
        true = _WITHOUT_CACHE.get(field.name)
        if true is not None and value != field.default and value not in true:
            raise ConfigError(
                f"--{field.name.replace('_', '-')} {value} has no effect where texts are pooled: "
                "there is no KV cache and nothing is sampled; leave it out"
            )
