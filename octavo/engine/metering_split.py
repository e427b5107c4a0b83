"""One step's device time, divided over the requests in it by what they had the device do.

Pure arithmetic on counts, once a step and on the engine's own thread: what counts is how many calls
of numpy there are. Knows no clock and no request; see `docs/metering.md` for why it is this split.

Shapes: [n] one entry per scheduled request, in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.types import WorkModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class StepCost:
    """Modelled nanoseconds of each request in a step.

    A request takes the larger of its operations at the device's rate and of its bytes (keys and
    values read and written, activations) at its bandwidth, as in a roofline. The weights, read once
    for all, are shared by the scheduled tokens, and those of the output layer by the rows that
    sample.

    Args:
        work: the model's shape and the device's rates.
    """

    def __init__(self, work: WorkModel) -> None:
        per_flop, per_byte = 1e9 / work.flops_per_s, 1e9 / work.bytes_per_s
        self._token_flops = work.flops_per_token * per_flop
        self._sample_flops = work.flops_per_sample * per_flop
        self._token_bytes = work.bytes_per_token * per_byte
        self._weights = work.weight_bytes * per_byte
        self._head = work.head_weight_bytes * per_byte
        self._is_causal = work.is_causal
        self._kinds = [
            (a.flops_per_pair * per_flop, a.bytes_per_token * per_byte, a.window)
            for a in work.attention
        ]
        # Of a decode: all that does not grow with its context.
        self._written = sum(bytes_ns for _, bytes_ns, _ in self._kinds)
        self._decode_flops = self._token_flops + self._sample_flops
        self._decode_bytes = self._token_bytes + self._written

    def decodes(self, context: Floats, num_tokens: int, num_samples: float) -> Floats:
        """Of requests that compute and sample one token each.

        Args:
            context: [n] tokens that each one looks at, its own included.
            num_tokens: of the whole step, which share the weights.
            num_samples: of the whole step, which share the output layer's.
        """
        flops: Floats | float = self._decode_flops
        moved: Floats | float = self._decode_bytes
        for pair_ns, bytes_ns, window in self._kinds:
            seen = context if window is None else np.minimum(context, window)
            flops = flops + seen * pair_ns
            moved = moved + seen * bytes_ns
        cost: Floats = np.maximum(flops, moved)
        cost += self._weights / num_tokens + self._head / num_samples
        return cost

    def rows(
        self, computed: Floats, new: Floats, samples: Floats, num_tokens: float, num_samples: float
    ) -> Floats:
        """Of any requests.

        Args:
            computed: [n] tokens whose keys and values are in the cache.
            new: [n] tokens that are computed, >= 1.
            samples: [n] rows of the output layer: 1.0 for those that sample a token.
            num_tokens: of the whole step, which share the weights.
            num_samples: of the whole step, which share the output layer's.
        """
        cost: Floats = self._cost(
            computed, new, samples, num_tokens, num_samples, np.minimum, np.maximum
        )
        return cost

    def row(
        self, computed: int, new: int, samples: int, num_tokens: float, num_samples: float
    ) -> float:
        """Of one request, as `rows`: faster where there are few."""
        cost: float = self._cost(computed, new, samples, num_tokens, num_samples, min, max)
        return cost

    def _cost(
        self,
        computed: Any,
        new: Any,
        samples: Any,
        num_tokens: float,
        num_samples: float,
        least: Callable[[Any, Any], Any],
        largest: Callable[[Any, Any], Any],
    ) -> Any:
        """Of numbers or arrays, with their functions."""
        end = computed + new
        flops = new * self._token_flops + samples * self._sample_flops
        moved = new * (self._token_bytes + self._written)
        for pair_ns, bytes_ns, window in self._kinds:
            if not self._is_causal:
                reach = end if window is None else least(end, 2 * window - 1)
                pairs, seen = new * reach, end
            elif window is None:
                pairs, seen = new * (computed + (new + 1) * 0.5), end
            else:
                pairs = _pairs_before(end, least(end, window), window)
                pairs = pairs - _pairs_before(computed, least(computed, window), window)
                seen = least(end, new + (window - 1))
            flops = flops + pairs * pair_ns
            moved = moved + seen * bytes_ns
        cost = largest(flops, moved) + new * (self._weights / num_tokens)
        return cost + samples * (self._head / num_samples) if num_samples else cost


def _pairs_before(position: Any, short: Any, window: int) -> Any:
    """Pairs of all tokens before a position, where each looks at the last `window`.

    `short` is the position, or the window if that is less.
    """
    return short * (short + 1) * 0.5 + (position - short) * window


def share_out(total: int, weights: Floats) -> Ints:
    """`total` in integers that add up to it, by the largest remainder (Hamilton's method).

    Args:
        total: >= 0.
        weights: [n], n >= 1, each >= 0 and finite; all zero: equal shares.
    """
    whole = float(weights.sum())
    if whole <= 0.0:
        weights, whole = np.ones(len(weights)), float(len(weights))
    exact = weights / whole * total
    shares = exact.astype(np.int64)
    left = total - int(shares.sum())
    if 0 < left < len(shares):
        exact -= shares
        shares[np.argpartition(exact, -left)[-left:]] += 1
    elif left:  # totals beyond 2^53 / n: products are rounded to more than one, up or down
        shares[shares.argmax()] += left
    return shares


def split_exactly(total: int, weights: Sequence[int]) -> list[int]:
    """As `share_out`, in Python's own integers, for numbers of any size; weights >= 0."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    shares = [total * weight // whole for weight in weights]
    remainders = [total * weight % whole for weight in weights]
    left = total - sum(shares)
    for index in sorted(range(len(shares)), key=lambda i: (-remainders[i], i))[:left]:
        shares[index] += 1
    return shares
