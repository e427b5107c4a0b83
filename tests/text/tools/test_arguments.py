"""Arguments that were cut off, against jiter: official clients read them by it as they come."""

from __future__ import annotations

import json
from typing import Any

import jiter
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.text.tools.arguments import arguments_object

# A number at the end may go on: jiter takes it as it is, and we do not.
LEAVES = st.none() | st.booleans() | st.text(max_size=5)
KEYS = st.text(max_size=3)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("{", {}),
        ('{"a"', {}),
        ('{"a": ', {}),
        ('{"a": 1', {}),
        ('{"a": 1, ', {"a": 1}),
        ('{"a": "x"', {"a": "x"}),
        ('{"a": "x\\"', {}),
        ('{"a": "x\\\\", "b": {"c": [1, {"d": 2', {"a": "x\\", "b": {"c": [1, {}]}}),
        ('{"a": "{[,", "b', {"a": "{[,"}),
        ('{"a": 1}', {"a": 1}),
        ("[1]", {}),
        ("nonsense", {}),
        ("[" * 5000, {}),
    ],
)
def test_examples(text: str, expected: dict[str, Any]) -> None:
    assert arguments_object(text) == expected


@settings(max_examples=200, deadline=None)
@given(value=OBJECTS, is_ascii=st.booleans(), data=st.data())
def test_against_jiter(value: dict[str, Any], is_ascii: bool, data: st.DataObject) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    assert arguments_object(text) == value
    cut = text[: data.draw(st.integers(1, len(text)))]
    expected = jiter.from_json(cut.encode(), partial_mode=True)
    # jiter takes a word for whole at its last letter, we at what follows it.
    if cut[-1] not in "el":
        assert arguments_object(cut) == expected


@given(text=st.text(alphabet='{}[]",:\\a1 ', max_size=40))
def test_anything_is_an_object(text: str) -> None:
    assert isinstance(arguments_object(text), dict)
