"""Philox4x32-10: random numbers as a function of a key and a counter, without any state.

A number depends on (seed, position) alone, so a request draws the same numbers whatever else is in
its batch, after a preemption, and on any device that computes the same function.

Method: J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC'11, https://doi.org/10.1145/2063384.2063405. Knows nothing of tokens or tensors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UInt64Array = NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(counter: UInt64Array, key: UInt64Array) -> UInt64Array:
    """Ten rounds of Philox on many counters at once.

    Args:
        counter: [4, n], 32-bit words held in uint64.
        key: [2, n], 32-bit words held in uint64.

    Returns:
        [4, n], 32-bit words held in uint64. The arguments stay as they are.
    """
    # A product of two 32-bit words fits into 64 bits; every word below stays under 2**32.
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0 = c0 * _MULTIPLIER_0
        product_1 = c2 * _MULTIPLIER_1
        c0 = (product_1 >> _32) ^ c1 ^ k0
        c1 = product_1 & _LOW
        c2 = (product_0 >> _32) ^ c3 ^ k1
        c3 = product_0 & _LOW
        k0 = (k0 + _WEYL_0) & _LOW
        k1 = (k1 + _WEYL_1) & _LOW
    return np.stack((c0, c1, c2, c3))


def uniform(seeds: UInt64Array, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position): a multiple of 2**-52.

    52 bits, not 53: then `u * total < total` holds for every normal `total` in float64.

    Args:
        seeds: [n], the key.
        positions: [n], >= 0, the low half of the counter; the high half is zero.

    Returns:
        [n] float64.
    """
    place = positions.astype(np.uint64)
    zero = np.zeros_like(place)
    counter = np.stack((place & _LOW, place >> _32, zero, zero))
    words = philox4x32(counter, np.stack((seeds & _LOW, seeds >> _32)))
    bits = ((words[0] << _32) | words[1]) >> np.uint64(12)
    fractions: NDArray[np.float64] = bits * 2.0**-52  # exact: bits < 2**52
    return fractions
