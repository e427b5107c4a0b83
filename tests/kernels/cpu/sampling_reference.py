"""What sampling may choose, by sorting in float64: a token, or several where a bound is near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAR = 1e-6
"""Part of the mass by which float32 may be off a bound."""


@dataclass(frozen=True)
class Params:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    @property
    def farthest(self) -> np.float32:
        with np.errstate(divide="ignore"):
            return np.float32(-np.log(np.float32(self.min_p)))


def falling_order(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """The largest first, ties by token id. A positive NaN is above all, a negative one below."""
    bits = (logits + np.float32(0)).view(np.int32).astype(np.int64)
    rising = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return np.lexsort((np.arange(len(logits)), -rising))


def distances(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore", over="ignore"):
        found = logits.max() - logits
    found[np.isnan(found)] = 0
    return found


def acceptable(logits: NDArray[np.float32], params: Params, u: float) -> set[int]:
    """Tokens that may be chosen at the number `u`; more than one only near a bound."""
    if params.temperature == 0:
        return {int(np.argmax(logits))}
    temperature = np.float32(params.temperature)
    away = distances(logits)
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp(-away.astype(np.float64) / np.float64(temperature))
        weights[away / temperature > params.farthest] = 0
    top_k = params.top_k if 0 < params.top_k < len(logits) else 0
    ordered = top_k > 0 or params.top_p < 1
    order = falling_order(logits) if ordered else np.arange(len(logits))
    if top_k:
        order = order[:top_k]
    masses = weights[order]
    sums = np.cumsum(masses)
    total = sums[-1]
    first = last = len(order) - 1
    if params.top_p < 1:
        share = float(np.float32(params.top_p)) * total
        first, last = (
            min(int(np.searchsorted(sums, share + off * total)), last) for off in (-NEAR, NEAR)
        )
    found: set[int] = set()
    for cut in range(first, last + 1):
        low, high = (
            min(int(np.searchsorted(sums, u * sums[cut] + off * total, side="right")), cut)
            for off in (-NEAR, NEAR)
        )
        found.update(order[i] for i in range(low, high + 1) if masses[i] > 0)
    assert found
    return {int(token) for token in found}
