"""Choice of the attention backend: the first that can, or the one that was asked for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from octavo.attention.native_cpu import NativeAttention
from octavo.attention.reference import ReferenceAttention
from octavo.attention.torch_cpu import TorchAttention
from octavo.attention.triton_paged import TritonAttention
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.attention.interface import AttentionBackend, AttentionSpec

logger = logging.getLogger("octavo")

BACKENDS: tuple[type[AttentionBackend], ...] = (
    TritonAttention,
    TorchAttention,
    NativeAttention,
    ReferenceAttention,
)
"""In order of preference."""


def select_backend(
    name: str, spec: AttentionSpec, *, prefers: str | None = None
) -> AttentionBackend:
    """The backend called `name`, or for `auto` the first that can serve `spec`.

    `auto` asks the one first that goes with the rest of the model (`prefers`); where keys and
    values are kept in another type than they are computed in, that is `native`. The log says which.

    Raises:
        ConfigError: none can; the message has every backend's reason.
    """
    known = {backend.name: backend for backend in BACKENDS}
    if name != "auto" and name not in known:
        raise ConfigError(f"--attention-backend {name}: unknown, choose from {', '.join(known)}")
    reasons = []
    if prefers is None and spec.stored_dtype != spec.dtype:
        prefers = NativeAttention.name
    usual = sorted(BACKENDS, key=lambda backend: backend.name != prefers)
    for backend in usual if name == "auto" else [known[name]]:
        instance = backend()
        reason = instance.why_not(spec)
        if reason is None:
            more = instance.describe(spec) if isinstance(instance, TritonAttention) else ""
            logger.info("attention: %s%s", instance.name, more)
            return instance
        reasons.append(f"{instance.name}: {reason}")
    raise ConfigError(f"no attention backend can serve this model ({'; '.join(reasons)})")
