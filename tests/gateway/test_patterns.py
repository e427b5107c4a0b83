"""Shell patterns, and which rule takes all that another is for: by calls drawn at random."""

from __future__ import annotations

import fnmatch
import os
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from octavo.gateway.conditions import Condition
from octavo.gateway.config_routes import When
from octavo.gateway.model import Call, KeyInfo
from octavo.gateway.patterns import covers, matcher, takes

NUM_EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "150"))
KNOWN = frozenset({"a", "ab"})

words = st.sampled_from(["a", "ab", "b", "abc", "A", ""])
patterns = st.sampled_from(["a", "ab", "a*", "*", "?", "b", "[ab]", "a?"])
some = st.none() | st.lists(patterns, min_size=1, max_size=3).map(tuple)
flag = st.none() | st.booleans()
number = st.none() | st.integers(0, 6)


@st.composite
def whens(draw: st.DrawFn) -> When:
    """Mostly conditions of few fields: of many, none covers another."""
    fields: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3, unique=True)):
        fields[name] = draw(FIELDS[name])
    least, most = fields.get("min_prompt_chars"), fields.get("max_prompt_chars")
    if least is not None and most is not None and least > most:
        fields["min_prompt_chars"] = most
    return When(**fields)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "models": some,
    "features": some,
    "tenants": some,
    "teams": some,
    "keys": some,
    "routes": st.none() | st.just(("chat",)) | st.just(("chat", "embeddings")),
    "languages": st.none() | st.just(("de",)) | st.just(("de", "fr")),
    "headers": st.dictionaries(st.sampled_from(["X", "x-y"]), patterns, max_size=2),
    "tags": st.dictionaries(st.sampled_from(["s", "t"]), patterns, max_size=2),
    "min_prompt_chars": number,
    "max_prompt_chars": number,
    "min_prompt_tokens": number,
    "has_tools": flag,
    "stream": flag,
}
calls = st.builds(
    Call,
    request_id=st.just("r"),
    arrived=st.just(0.0),
    route=st.sampled_from(["chat", "embeddings"]),
    path=st.just(""),
    model=words,
    stream=st.booleans(),
    body=st.just({}),
    headers=st.dictionaries(st.sampled_from(["x", "x-y"]), words, max_size=2),
    num_prompt_chars=st.integers(0, 7),
    num_prompt_tokens=st.integers(0, 7),
    has_tools=st.booleans(),
    key=st.builds(KeyInfo, key_id=words, team=words),
    feature=words,
    tenant=words,
    tags=st.dictionaries(st.sampled_from(["s", "t"]), words, max_size=2),
    language=st.sampled_from(["", "de", "fr"]),
)


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(whens(), whens(), st.lists(calls, min_size=1, max_size=20))
@example(When(models=("a*",)), When(), [])
@example(When(), When(models=("abc",)), [])
def test_what_is_covered_is_taken(wide: When, narrow: When, asked: list[Call]) -> None:
    """Nothing is called unreachable that some request would reach."""
    if covers(wide, narrow, KNOWN):
        first, second = Condition(wide, KNOWN), Condition(narrow, KNOWN)
        assert all(first.holds(call) for call in asked if second.holds(call))


@settings(deadline=None)
@given(whens())
def test_everything_covers_itself_and_is_covered_by_more(when: When) -> None:
    assert covers(when, when, KNOWN)
    assert covers(When(models=("*",)), when, KNOWN)


@pytest.mark.parametrize(
    ("wide", "narrow", "is_covered"),
    [
        (When(), When(models=("a", "ab")), True),
        (When(), When(models=("abc",)), False),
        (When(models=("a", "ab")), When(), True),
        (When(models=("a",)), When(), False),
        (When(models=("a*",)), When(models=("ab", "a*")), True),
        (When(tags={"t": "x*"}), When(tags={"t": "xy", "s": "z"}), True),
        (When(tags={"t": "x*", "s": "z"}), When(tags={"t": "xy"}), False),
        (When(headers={"X-Tier": "*"}), When(headers={"x-tier": "a"}), True),
        (When(min_prompt_chars=5), When(min_prompt_chars=6, max_prompt_chars=7), True),
        (When(max_prompt_chars=6), When(min_prompt_chars=5), False),
        (When(has_tools=False), When(), False),
    ],
)
def test_cases(wide: When, narrow: When, is_covered: bool) -> None:
    assert covers(wide, narrow, KNOWN) is is_covered


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab*?[]!-", max_size=6), min_size=1, max_size=4), words)
def test_matching_is_fnmatchs(found: list[str], name: str) -> None:
    expected = any(fnmatch.fnmatchcase(name, pattern) for pattern in found)
    assert (matcher(found).match(name) is not None) == expected
    if takes(found, [name]) and name:
        assert expected
