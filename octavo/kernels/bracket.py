"""Where the threshold of top-p lies, about, from one look at each split of a row.

Parts of kernels. Splits of a row note the mass above values that lie some octaves of probability
apart, multiples of one step (the lattice), so that the same value can be added up over all splits
before any of them knows the row's largest logit. Between the two values where the mass reaches the
share, pivots are chosen for the next look.

Statistics of a row are [2 + lattice, splits]: largest logits; how many steps from zero the first
value of the lattice is; masses above its values, the last one of all, relative to the split's
largest logit. All but the first are known for top-p alone.
"""
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.threshold import sums_above, to_key, to_value, weight

LATTICE = tl.constexpr(8)
"""Values of the lattice, from about the split's largest logit down; the last one is -inf."""

PIVOTS = tl.constexpr(16)

STATS = tl.constexpr(2 + 8)
"""Numbers of a split."""

_OCTAVES = tl.constexpr(1.5)  # between values
_FARTHEST = tl.constexpr(2.0**22)  # steps from zero: there the lattice is still exact

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_LOG2_3 = tl.constexpr(1.584962500721156)


@triton.jit
def survey(stats, logits, weights, top, temperature, NUM_SPLITS: tl.constexpr):
    """Store a split's masses above the values of its lattice; `stats` is the split's place."""
    step = temperature * (_LN_2 * _OCTAVES)
    first = tl.floor(tl.minimum(tl.maximum(top / step, -_FARTHEST), _FARTHEST))
    tl.store(stats + NUM_SPLITS, first)
    place = tl.arange(0, LATTICE)
    # A product of the same two numbers in all splits that have the value, rounded once.
    values = tl.where(place < LATTICE - 1, (first - place) * step, float("-inf"))
    tl.store(stats + (2 + place) * NUM_SPLITS, sums_above(values, logits, weights))


@triton.jit
def load_stats(stats, sharpness, NUM_SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr):
    """Of a row, the largest logit and the sum of weights; what each split's weights count there.

    The sum is known for top-p alone.
    """
    splits = tl.arange(0, SPLITS_PAD)
    real = splits < NUM_SPLITS
    tops = tl.load(stats + splits, mask=real, other=float("-inf"))
    sums = tl.load(stats + (1 + LATTICE) * NUM_SPLITS + splits, mask=real, other=0.0)
    top = tl.max(tops, 0)
    scales = weight(tops, top, sharpness)
    return top, tl.sum(sums * scales, 0), scales


@triton.jit
def _guess(masses, found, target, above, below):
    """About where the mass reaches the target, between two values of the lattice.

    It is taken for a parabola there, whose slope changes as it does from neighbour to neighbour.
    """
    place = tl.arange(0, LATTICE)
    hi_mass = tl.sum(tl.where(place == found - 1, masses, 0.0), 0)
    here = tl.sum(tl.where(place == found, masses, 0.0), 0) - hi_mass
    before = hi_mass - tl.sum(tl.where(place == found - 2, masses, 0.0), 0)
    after = tl.sum(tl.where(place == found + 1, masses, 0.0), 0) - here - hi_mass
    # The last place of the lattice is the mass of all.
    change = tl.where((found > 0) & (found < LATTICE - 2), (after - before) / 2, 0.0)
    lacking = target - hi_mass
    linear = here - change / 2
    root = tl.sqrt(tl.maximum(linear * linear + 2 * change * lacking, 0.0))
    share = 2 * lacking / (linear + root)
    share = tl.where((share >= 0) & (share <= 1), share, 0.5)
    return above - share * (above - below)


@triton.jit
def bracket(
    stats,
    temperature,
    top_p,
    SHIFT: tl.constexpr,
    V: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
):
    """Of a row with top-p alone: keys lo and hi, a guess, and the step around it.

    The threshold is in [lo, hi). Where there is no guess, the step is zero.
    """
    top, total, scales = load_stats(stats, _LOG2_E / temperature, NUM_SPLITS, SPLITS_PAD)
    target = top_p * total
    # Below this tokens are so improbable that all together would be less than top-p leaves out.
    lowest = top - temperature * (tl.log(V / ((1 - top_p) * total)) * 1.001 + 0.001)
    lo = to_key(tl.where(lowest == lowest, lowest, float("-inf")), SHIFT)
    hi = to_key(top, SHIFT) + 1

    splits = tl.arange(0, SPLITS_PAD)
    place = tl.arange(0, LATTICE)
    firsts = tl.load(stats + NUM_SPLITS + splits, mask=splits < NUM_SPLITS, other=-_FARTHEST)
    first = tl.max(firsts, 0)
    # The same values as the split has numbered them; above its first one it has no mass.
    numbers = place[:, None] + (firsts - first).to(tl.int32)[None, :]
    numbers = tl.where(place[:, None] == LATTICE - 1, LATTICE - 1, numbers)
    masses = tl.load(
        stats + (2 + numbers) * NUM_SPLITS + splits[None, :],
        mask=(numbers >= 0) & (splits < NUM_SPLITS)[None, :],
        other=0.0,
    )
    masses = tl.sum(masses * scales[None, :], 1)
    step = temperature * (_LN_2 * _OCTAVES)
    is_exact = (tl.maximum(first, -first) < _FARTHEST / 4) & (step < 1e30)
    found = tl.min(tl.where(masses >= target, place, LATTICE - 1), 0)
    found = tl.where(is_exact, found, LATTICE - 1)
    above = (first - (found - 1)) * step
    below = (first - found) * step
    if found < LATTICE - 1:
        lo = tl.maximum(lo, to_key(below, SHIFT))
    if (found > 0) & is_exact:
        hi = tl.minimum(hi, to_key(above, SHIFT) + 1)
    lo = tl.minimum(lo, hi - 1)

    guess = _guess(masses, found, target, above, below)
    key = to_key(guess, SHIFT)
    gap = tl.maximum(to_value(key + 1, SHIFT) - to_value(key, SHIFT), (above - below) / 1024)
    has_guess = (found < LATTICE - 1) & (hi.to(tl.int64) - lo > PIVOTS)
    gap = tl.where(has_guess, gap, 0.0)
    return lo, hi, guess, gap


@triton.jit
def pivots_of(count, lo, hi, guess, gap, SHIFT: tl.constexpr):
    """Keys in (lo, hi] that rise with the count, up to hi: all of them if they are few.

    Else the guess, its neighbours, and others 9, 27, ... 729 times as far; without a guess, even
    parts.
    """
    if gap > 0:
        distance = tl.abs(count - PIVOTS // 2).to(tl.float32)
        distance = tl.where(distance <= 3, distance, tl.exp2((distance - 2) * _LOG2_3))
        distance = tl.where(count < PIVOTS // 2, -distance, distance)
        pivots = to_key(guess + distance * gap, SHIFT)
    else:
        span = tl.maximum(hi.to(tl.int64) - lo, PIVOTS)
        pivots = (lo + span * (count + 1) // PIVOTS).to(tl.int32)
    return tl.where(count == PIVOTS - 1, hi, tl.minimum(tl.maximum(pivots, lo + 1), hi))


@triton.jit
def num_pivots(lo, hi):
    """How many are measured: all, or half where those are all keys in (lo, hi] already."""
    return tl.where(hi.to(tl.int64) - lo > PIVOTS // 2, PIVOTS, PIVOTS // 2)
