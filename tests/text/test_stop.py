from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from octavo.text.stop import StopChecker

# Few letters and short strings: overlaps, repeats and near misses are the rule.
texts = st.text(alphabet="ab\U0001f600", max_size=30)
stops = st.lists(st.text(alphabet="ab\U0001f600", min_size=1, max_size=5), max_size=4)


def reference(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The stop string that ends first, of those the longest; found in the whole text."""
    found = [(text.find(s) + len(s), text.find(s), s) for s in stop if s in text]
    if not found:
        return text, None
    _, start, hit = min(found)
    return text[:start], hit


def run(pieces: list[str], stop: list[str]) -> tuple[str, str | None]:
    checker = StopChecker(stop)
    out = ""
    for piece in pieces:
        safe, hit = checker.push(piece)
        out += safe
        if hit is not None:
            assert checker.push("more") == ("", hit)
            assert checker.flush() == ""
            return out, hit
    return out + checker.flush(), None


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(texts, stops, st.lists(st.integers(0, 30), max_size=30))
@example("abcabcabd", ["abcabd"], [1, 2, 3, 4, 5, 6, 7, 8])
def test_any_chunking_gives_the_reference(text: str, stop: list[str], cuts: list[int]) -> None:
    assert run(cut(text, cuts), stop) == reference(text, stop)


@given(texts, stops, st.lists(st.integers(0, 30), max_size=30))
def test_without_strings_inside_each_other_the_earliest_begin_counts(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    assume(not any(a in b[1:-1] for a in stop for b in stop))
    starts = [text.index(s) for s in stop if s in text]
    expected = text[: min(starts)] if starts else text
    assert run(cut(text, cuts), stop)[0] == expected


@given(texts, stops)
def test_holds_back_exactly_what_may_begin_a_stop_string(text: str, stop: list[str]) -> None:
    assume(not any(s in text for s in stop))
    checker = StopChecker(stop)
    shown = ""
    for count, char in enumerate(text, 1):
        shown += checker.push(char)[0]
        longest = max(
            (n for s in stop for n in range(len(s)) if text[:count].endswith(s[:n])), default=0
        )
        assert shown == text[: count - longest]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\nUser: two", ["\nUser:"], ("one", "\nUser:")),
        ("abcd", ["abcd", "bc"], ("a", "bc")),  # the end that comes first
        ("xab", ["b", "ab"], ("x", "ab")),  # of equal ends the longest
        ("", ["a"], ("", None)),
        ("abc", [], ("abc", None)),
        ("aab", ["ab"], ("a", "ab")),
    ],
)
def test_ties(text: str, stop: list[str], expected: tuple[str, str | None]) -> None:
    assert run(list(text), stop) == expected
    assert run([text], stop) == expected


def test_the_longest_stop_strings_cost_linear_time() -> None:
    stop = ["a" * (1023 - n) + "b" for n in range(16)]
    checker = StopChecker(stop)
    start = time.perf_counter()
    out = "".join(checker.push("a" * 4)[0] for _ in range(5000))
    seconds = time.perf_counter() - start
    assert out + checker.flush() == "a" * 20_000
    assert seconds < 5  # 320,000 comparisons; quadratic work would be 300 million
