"""Whether a checkpoint is to generate or to pool, by its files and `--task`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.models.registry import only_pools
from octavo.weights.sentence_transformers import is_sentence_model

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.weights.checkpoint import Checkpoint


def is_pooled(config: EngineConfig, checkpoint: Checkpoint) -> bool:
    """Whether the engine makes vectors, not text.

    A folder that sentence-transformers saved, and an architecture without an output layer, pool.

    Raises:
        ConfigError: the flag asks for text from a model that has none.
    """
    architecture = checkpoint.architecture
    if config.task == "generate" and only_pools(architecture):
        raise ConfigError(f"--task generate: {architecture} makes vectors, use --task embed")
    if config.task == "auto":
        return only_pools(architecture) or (
            checkpoint.path.is_dir() and is_sentence_model(checkpoint.path)
        )
    return config.task != "generate"
