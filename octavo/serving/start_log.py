"""What a server tells in its log when it is ready."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.config import ServerConfig
    from octavo.engine.client import AsyncEngine
    from octavo.serving.front_end import StartTimes

logger = logging.getLogger("octavo")


def log_start(engine: AsyncEngine, config: ServerConfig, url: str, times: StartTimes) -> None:
    """What is served, with which cache, how long the start took, and where it is."""
    from octavo.config import format_bytes

    info = engine.info
    cache = info.kv_cache
    total = time.perf_counter() - times.begin
    parts = {"process": engine.process_startup_s, **info.startup_s}
    if times.before_s is not None:
        parts = {"command": times.before_s, **parts}
        total += times.before_s
    logger.info(
        "model %s: %s, %s on %s",
        ", ".join(config.served_model_names),
        info.architecture,
        info.dtype,
        info.device,
    )
    if info.pooling is not None:
        logger.info(
            "%s: vectors of %d numbers from up to %d tokens, by %s%s",
            " and ".join(info.tasks),
            info.pooling.num_dimensions,
            info.max_model_len,
            info.pooling.pooling_type,
            ", normalized" if info.pooling.is_normalized else "",
        )
    else:
        logger.info(
            "KV cache: %d blocks of %d tokens, %d tokens, %s: %.1f sequences of %d tokens",
            cache.num_blocks,
            cache.block_size,
            cache.num_tokens,
            format_bytes(cache.num_blocks * cache.bytes_per_block),
            cache.num_tokens / info.max_model_len,
            info.max_model_len,
        )
    logger.info(
        "start-up took %.2f s: %s; beside them: tokenizer %.2f, server imports %.2f",
        total,
        ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items()),
        times.tokenizer_s,
        times.imports_s,
    )
    logger.info("ready at %s", url if url.startswith("unix:") else f"{url}/v1")
