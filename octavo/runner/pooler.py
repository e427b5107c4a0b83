"""From hidden states to vectors: pooling, cutting, normalizing, and what a head's logits become.

Knows no model and no request but its parameters. Shapes: t tokens, n texts, v numbers of a vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo.types import PoolingParams, PoolingType

LabelActivation = Literal["sigmoid", "softmax", "none"]


def pool(x_td: torch.Tensor, lengths: Sequence[int], kind: PoolingType) -> torch.Tensor:
    """Hidden states [t, d] of texts, one behind the other, to [n, d] in float32."""
    ends = torch.tensor(lengths, device=x_td.device).cumsum(0)
    if kind == "last":
        return x_td[ends - 1].float()
    sizes = torch.tensor(lengths, device=x_td.device)
    if kind == "cls":
        return x_td[ends - sizes].float()
    means: torch.Tensor = torch.segment_reduce(x_td.float(), "mean", lengths=sizes)
    return means


def embeddings(
    x_nd: torch.Tensor, params: Sequence[PoolingParams], *, is_normalized: bool
) -> list[bytes]:
    """Pooled states as vectors, each cut and normalized as its request asks.

    Args:
        x_nd: float32.
        params: parallel to the rows.
        is_normalized: what holds for requests that do not say.
    """
    vectors: list[torch.Tensor] = list(x_nd)
    normal = F.normalize(x_nd, dim=-1)
    for index, wanted in enumerate(params):
        normalizes = is_normalized if wanted.is_activated is None else wanted.is_activated
        if wanted.dimensions is not None:
            cut = x_nd[index, : wanted.dimensions]
            vectors[index] = F.normalize(cut, dim=-1) if normalizes else cut
        elif normalizes:
            vectors[index] = normal[index]
    return [to_bytes(vector) for vector in _to_host(vectors)]


def label_scores(
    logits_nv: torch.Tensor, params: Sequence[PoolingParams], activation: LabelActivation
) -> list[bytes]:
    """A head's logits as probabilities, or as they are for requests that ask for that."""
    logits = logits_nv.float()
    if activation == "sigmoid":
        activated = logits.sigmoid()
    elif activation == "softmax":
        activated = logits.softmax(-1)
    else:
        activated = logits
    chosen = [
        logits[index] if wanted.is_activated is False else activated[index]
        for index, wanted in enumerate(params)
    ]
    return [to_bytes(vector) for vector in _to_host(chosen)]


def label_activation(config: Mapping[str, Any], num_labels: int) -> LabelActivation:
    """What a classifier's configuration makes of logits.

    sentence-transformers' cross-encoders name a function; transformers' classifiers a problem; else
    one label is a probability by itself, and several are one distribution (as vLLM does it).
    """
    named = (config.get("sentence_transformers") or {}).get("activation_fn") or config.get(
        "sbert_ce_default_activation_function"
    )
    if isinstance(named, str):
        if named.endswith("Sigmoid"):
            return "sigmoid"
        if named.endswith("Identity"):
            return "none"
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification":
        return "sigmoid"
    return "sigmoid" if num_labels == 1 else "softmax"


def _to_host(vectors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same on the CPU, in one copy for each length."""
    if not vectors or vectors[0].device.type == "cpu":
        return vectors
    flat = torch.cat(vectors).cpu()
    return list(torch.split(flat, [len(vector) for vector in vectors]))


def to_bytes(vector: torch.Tensor) -> bytes:
    """Float32 numbers, least significant byte first."""
    data: bytes = vector.numpy().astype("<f4", copy=False).tobytes()
    return data
