"""Where the threshold of top-p lies, from a first look at each split of a row, and from more.

Parts of kernels. In the first look, the survey, splits of a row note the mass above values that lie
some octaves of probability apart, multiples of one step (the lattice), so that the same value can
be added up over all splits before any of them knows the row's largest logit. Between the two values
where the mass reaches the share, a guess is made, and around it are pivots for the next look. The
guess only saves time: what is found is what masses above pivots say.

Statistics of a row are [2 + lattice, splits]: largest logits; how many steps from zero the first
value of the lattice is; masses above its values, the last one of all, relative to the split's
largest logit. All but the first are known for top-p alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.logit_splits import LOG2_E, weight
from octavo.kernels.threshold import scaled, sums_above, to_key, to_value

LATTICE = tl.constexpr(16)
"""Values of the lattice, from about the split's largest logit down; the last one is -inf."""

STATS = tl.constexpr(2 + 16)
"""Numbers of a split."""

PIVOTS = tl.constexpr(16)
"""Of the second look, and room for those of the third."""

_OCTAVES = tl.constexpr(1.25)  # between values: 12 nats in all, or 1 token in 190,000
_FARTHEST = tl.constexpr(2.0**22)  # steps from zero: there the lattice is still exact
_LAST = tl.constexpr(16 - 1)

_LN_2 = tl.constexpr(0.6931471805599453)
_LOG2_3 = tl.constexpr(1.584962500721156)


@triton.jit
def survey(stats, logits, weights, top, temperature, NUM_SPLITS: tl.constexpr):
    """Store a split's masses above the values of its lattice; `stats` is the split's place."""
    step = temperature * (_LN_2 * _OCTAVES)
    first = tl.floor(tl.minimum(tl.maximum(top / step, -_FARTHEST), _FARTHEST))
    tl.store(stats + NUM_SPLITS, first)
    # In two rounds: all at once want more registers than there are.
    for begin in range(0, LATTICE, LATTICE // 2):
        place = begin + tl.arange(0, LATTICE // 2)
        # A product of the same two numbers in all splits that have the value, rounded once.
        values = tl.where(place < _LAST, (first - place) * step, float("-inf"))
        tl.store(stats + (2 + place) * NUM_SPLITS, sums_above(values, logits, weights))


@triton.jit
def _load_stats(stats, sharpness, NUM_SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr):
    """Of a row, the largest logit and the sum of weights; what each split's weights count there."""
    splits = tl.arange(0, SPLITS_PAD)
    real = splits < NUM_SPLITS
    tops = tl.load(stats + splits, mask=real, other=float("-inf"))
    sums = tl.load(stats + (2 + _LAST) * NUM_SPLITS + splits, mask=real, other=0.0)
    top = tl.max(tops, 0)
    scales = weight(tops, top, sharpness)
    return top, tl.sum(scaled(sums, scales), 0), scales


@triton.jit
def _at(values, index, N: tl.constexpr):
    """The value at an index; 0 outside."""
    return tl.sum(tl.where(tl.arange(0, N) == index, values, 0.0), 0)


@triton.jit
def _logit(mass, total):
    """Rises with the mass, and along a distribution of one hump nearly as its logits do."""
    return tl.log(mass / tl.maximum(total - mass, total * 1e-7))


@triton.jit
def _is_inside(mass, total):
    return (mass > 0) & (mass < total * (1 - 1e-6))


@triton.jit
def _factor(goal, y, other, is_known):
    return tl.where(is_known, (goal - other) / (y - other), 1.0)


@triton.jit
def _between(target, total, x1, mass1, x2, mass2):
    """Where the mass reaches the target, from two points, x1 > x2."""
    y1, y2 = _logit(tl.maximum(mass1, total * 1e-7), total), _logit(mass2, total)
    part = (_logit(target, total) - y1) / (y2 - y1)
    return x1 + tl.minimum(tl.maximum(part, 0.0), 1.0) * (x2 - x1)


@triton.jit
def _among(target, total, x0, mass0, x1, mass1, x2, mass2, x3, mass3):
    """The same between x1 and x2, from up to four points: a polynomial through those with mass."""
    goal = _logit(target, total)
    known0, known1 = _is_inside(mass0, total), _is_inside(mass1, total)
    known2, known3 = _is_inside(mass2, total), _is_inside(mass3, total)
    y0, y1 = _logit(mass0, total), _logit(mass1, total)
    y2, y3 = _logit(mass2, total), _logit(mass3, total)
    p0 = _factor(goal, y0, y1, known1) * _factor(goal, y0, y2, known2)
    p1 = _factor(goal, y1, y0, known0) * _factor(goal, y1, y2, known2)
    p2 = _factor(goal, y2, y0, known0) * _factor(goal, y2, y1, known1)
    p3 = _factor(goal, y3, y0, known0) * _factor(goal, y3, y1, known1)
    x = tl.where(known0, x0 * p0 * _factor(goal, y0, y3, known3), 0.0)
    x += tl.where(known1, x1 * p1 * _factor(goal, y1, y3, known3), 0.0)
    x += tl.where(known2, x2 * p2 * _factor(goal, y2, y3, known3), 0.0)
    x += tl.where(known3, x3 * p3 * _factor(goal, y3, y2, known2), 0.0)
    # Of fewer than two points, or of two with the same mass, nothing is made.
    is_usable = known1 & known2 & (x <= x1) & (x >= x2)
    return tl.where(is_usable, x, _between(target, total, x1, mass1, x2, mass2))


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
    """Of a row with top-p alone: bounds, masses, a guess.

    Returns:
        Keys lo and hi, the threshold is in [lo, hi); the mass at lo, and of all; a guess of the
        threshold, and the least distance from it that pivots should have.
    """
    top, total, scales = _load_stats(stats, LOG2_E / temperature, NUM_SPLITS, SPLITS_PAD)
    target = top_p * total
    # Below this tokens are so improbable that all together would be less than top-p leaves out.
    lowest = top - temperature * (tl.log(V / ((1 - top_p) * total)) * 1.001 + 0.001)
    lowest = tl.where(lowest == lowest, lowest, float("-inf"))
    lo = to_key(lowest, SHIFT)
    hi = to_key(top, SHIFT) + 1

    splits = tl.arange(0, SPLITS_PAD)
    place = tl.arange(0, LATTICE)
    firsts = tl.load(stats + NUM_SPLITS + splits, mask=splits < NUM_SPLITS, other=-_FARTHEST)
    first = tl.max(firsts, 0)
    # The same values as the split has numbered them; above its first one it has no mass.
    numbers = place[:, None] + (firsts - first).to(tl.int32)[None, :]
    numbers = tl.where(place[:, None] == _LAST, _LAST, numbers)
    masses = tl.load(
        stats + (2 + numbers) * NUM_SPLITS + splits[None, :],
        mask=(numbers >= 0) & (splits < NUM_SPLITS)[None, :],
        other=0.0,
    )
    masses = tl.sum(scaled(masses, scales[None, :]), 1)
    step = temperature * (_LN_2 * _OCTAVES)
    is_exact = (tl.maximum(first, -first) < _FARTHEST / 4) & (step < 1e30)
    found = tl.min(tl.where(masses >= target, place, _LAST), 0)
    found = tl.where(is_exact, found, _LAST)
    above, below, lo_mass = top, lowest, total
    hi_mass = _at(masses, found - 1, LATTICE) * is_exact
    if found < _LAST:
        below = (first - found) * step
        lo_mass = _at(masses, found, LATTICE)
        lo = tl.maximum(lo, to_key(below, SHIFT))
    if (found > 0) & is_exact:
        above = (first - (found - 1)) * step
        hi = tl.minimum(hi, to_key(above, SHIFT) + 1)
    lo = tl.minimum(lo, hi - 1)
    mass_before = _at(masses, found - 2, LATTICE) * is_exact
    mass_after = tl.where(found < _LAST - 1, _at(masses, found + 1, LATTICE), 0.0)
    guess = _among(
        target, total, (first - (found - 2)) * step, mass_before, above, hi_mass,
        below, tl.minimum(lo_mass, total * 0.999), (first - (found + 1)) * step, mass_after,
    )  # fmt: skip
    return lo, hi, lo_mass, total, guess, (above - below) / 1024


@triton.jit
def refine(lo, hi, lo_mass, pivots, masses, target):
    """What masses above pivots say of [lo, hi): new bounds, keys of 64 bits, and their masses.

    The mass at hi is known if hi is a pivot.
    """
    reached = masses >= target
    hi = tl.min(tl.where(reached, hi, pivots), 0)
    new_lo = tl.minimum(tl.max(tl.where(reached, pivots, lo), 0), hi - 1)
    lo_mass = tl.maximum(tl.max(tl.where(pivots == new_lo, masses, 0.0), 0), target)
    hi_mass = tl.max(tl.where(pivots == hi, masses, 0.0), 0)
    return new_lo, hi, lo_mass, hi_mass


@triton.jit
def guess_again(lo, hi, lo_mass, hi_mass, target, total, SHIFT: tl.constexpr):
    """A guess between the bounds, and the least distance from it that pivots should have."""
    above, below = to_value(hi.to(tl.int32), SHIFT), to_value(lo.to(tl.int32), SHIFT)
    guess = _between(target, total, above, hi_mass, below, tl.minimum(lo_mass, total * 0.999))
    return guess, (above - below) / 1024


@triton.jit
def pivots_around(lo, hi, guess, gap, SHIFT: tl.constexpr, NUM: tl.constexpr):
    """[NUM] keys in (lo, hi] that rise up to hi: all of them if they are few.

    Else the guess, its neighbours, and others 9, 27, ... times as far; `gap` is the least distance.
    Without a guess, even parts.
    """
    count = tl.arange(0, NUM)
    span = hi.to(tl.int64) - lo
    key = to_key(guess, SHIFT)
    gap = tl.maximum(to_value(key + 1, SHIFT) - to_value(key, SHIFT), gap)
    distance = tl.abs(count - NUM // 2).to(tl.float32)
    distance = tl.where(distance <= 3, distance, tl.exp2((distance - 2) * _LOG2_3))
    distance = tl.where(count < NUM // 2, -distance, distance)
    pivots = to_key(guess + distance * gap, SHIFT)
    has_guess = (gap > 0) & (gap < float("inf")) & (guess == guess)
    if (span <= NUM) | (has_guess == 0):
        span = tl.maximum(span, NUM)
        pivots = (lo + span * (count + 1) // NUM).to(tl.int32)
    return tl.where(count == NUM - 1, hi, tl.minimum(tl.maximum(pivots, lo + 1), hi)).to(tl.int32)


@triton.jit
def num_pivots(lo, hi):
    """How many of the second look are measured: half where those are all keys in (lo, hi]."""
    return tl.where(hi.to(tl.int64) - lo > PIVOTS // 2, PIVOTS, PIVOTS // 2)
