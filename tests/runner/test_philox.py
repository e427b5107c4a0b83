from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.runner.philox import philox4x32, uniform

# Known answers that Random123 publishes (tests/kat_vectors, lines "philox4x32 10"):
# four words of counter, two of key, four of result.
KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1
"""


def test_philox_known_answers() -> None:
    table = [[int(word, 16) for word in line.split()] for line in KNOWN_ANSWERS.split("\n") if line]
    words = np.array(table, np.uint64).T
    np.testing.assert_array_equal(philox4x32(words[0:4], words[4:6]), words[6:10])


def scalar_philox(seed: int, position: int) -> float:
    """The paper's algorithm on Python's unbounded integers, written apart from the module."""
    left, right = [position % 2**32, 0], [position >> 32, 0]
    keys = [seed % 2**32, (seed >> 32) % 2**32]
    for _ in range(10):
        high_0, low_0 = divmod(left[0] * 0xD2511F53, 2**32)
        high_1, low_1 = divmod(left[1] * 0xCD9E8D57, 2**32)
        left = [high_1 ^ right[0] ^ keys[0], high_0 ^ right[1] ^ keys[1]]
        right = [low_1, low_0]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return ((left[0] * 2**32 + right[0]) >> 12) / 2**52


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1)), min_size=1))
def test_uniform_is_the_papers_function(pairs: list[tuple[int, int]]) -> None:
    seeds, positions = zip(*pairs, strict=True)
    got = uniform(np.array(seeds, np.uint64), np.array(positions, np.int64))
    assert got.tolist() == [scalar_philox(*pair) for pair in pairs]


@pytest.mark.parametrize("vary", ["seeds", "positions"])
def test_uniform_is_even(vary: str) -> None:
    """Chi-square of 64 bins and a serial correlation, over neighbours that differ in one bit."""
    count = np.arange(1 << 16)
    fixed = np.full_like(count, 7)
    seeds, positions = (count, fixed) if vary == "seeds" else (fixed, count)
    got = uniform(seeds.astype(np.uint64), positions)
    assert got.min() >= 0
    assert got.max() < 1
    expected = len(got) / 64
    chi_square = ((np.histogram(got, 64, (0, 1))[0] - expected) ** 2 / expected).sum()
    assert chi_square < 103.4  # 63 degrees of freedom: exceeded once in 1000
    assert abs(np.corrcoef(got[:-1], got[1:])[0, 1]) < 4 / np.sqrt(len(got))


def test_a_number_below_one_stays_below_the_total() -> None:
    largest = 1 - 2.0**-52
    for total in np.random.default_rng(0).uniform(2**-20, 2, 10_000):
        assert largest * total < total
