"""JSON and Python literals read in pieces, against the standard library's readers."""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text.tools.json_text import read_value
from octavo.text.tools.python_call import read_literal, whole_literal
from octavo.text.tools.reader import MalformedError, TextReader
from tests.text.tools.helper import cut, cuts

if TYPE_CHECKING:
    from octavo.text.tools.reader import Steps

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def finite(value: Any) -> bool:
    return "Infinity" not in json.dumps(value)


def run(steps: Steps[Any], reader: TextReader, pieces: list[str]) -> Any:
    """The steps' result over a text in pieces."""
    try:
        next(steps)
        for piece in pieces:
            reader.feed(piece)
            next(steps)
        reader.close()
        next(steps)
    except StopIteration as end:
        return end.value
    raise AssertionError("a closed reader never waits")


def read_json(pieces: list[str]) -> tuple[str, str]:
    """The value's text as handed on, and what is left unread of the pieces that it needed."""
    reader, out = TextReader(), []
    run(read_value(reader, out.append), reader, pieces)
    return "".join(out), "".join(pieces)[len(reader.commit()) :]


@given(values.filter(finite), st.booleans(), st.sampled_from([None, 2]), cuts)
def test_json_is_handed_on_as_it_is(value: Any, ascii_only: bool, indent: Any, edges: Any) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    given, rest = read_json(cut(text + "]", edges))
    assert given == text
    assert rest == "]"


@given(values.filter(finite), st.data(), cuts)
def test_json_with_an_error_is_refused_as_the_library_refuses_it(
    value: Any, data: st.DataObject, edges: Any
) -> None:
    text = json.dumps([value])
    place = data.draw(st.integers(1, len(text) - 1))  # a bare number has no end of its own
    char = data.draw(st.sampled_from('{}[]",:0-.e+tn x'))
    broken = text[:place] + char + text[place + data.draw(st.integers(0, 1)) :]
    try:
        ours, rest = read_json(cut(broken, edges))
    except MalformedError:
        with pytest.raises(ValueError, match=r"."):
            json.JSONDecoder().raw_decode(broken)
        return
    theirs = json.loads(ours)
    if "\\" not in broken:  # a bad escape is repaired
        assert theirs == json.JSONDecoder().raw_decode(broken)[0]
        assert ours + rest == broken


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"a\nb\tc"', "a\nb\tc"),
        (r'"\d+\s"', r"\d+\s"),
        (r'"C:\users\x"', r"C:\users\x"),
        (r'"\u00e9\u12"', "\u00e9\\u12"),
        (r'"\ud83d\ude42"', "\U0001f642"),
    ],
)
def test_kindnesses(text: str, value: str) -> None:
    for edges in ([], range(len(text))):
        given, rest = read_json(cut(text, edges))
        assert json.loads(given) == value
        assert rest == ""


@pytest.mark.parametrize("text", ["", '"', '"\\', '"\\u', "[1", "nul", "{'a': 1}", "[1,]", "NaN"])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(MalformedError):
        read_json([text])


def test_depth_costs_nothing() -> None:
    text = "[" * 100_000 + "]" * 100_000
    assert read_json([text]) == (text, "")


@given(values.filter(finite), cuts)
def test_python_literals(value: Any, edges: Any) -> None:
    text = repr(value)
    assert ast.literal_eval(text) == value
    reader = TextReader()
    assert json.loads(run(read_literal(reader), reader, cut(text + ")", edges))) == value


@pytest.mark.parametrize(
    "text",
    [
        "(1, 'a', (2,), ())",
        "{'a': (1, 2,), 'b': {}, }",
        "'''two\n\"lines\" and ''quotes'''",
        '"""x"""',
        r"'\x41\u00e9\n\'\\ \U0001f642'",
        "+1_000",
        "-2.5e-3",
        "0x1F",
        "''",
        '"it\'s"',
    ],
)
def test_python_spellings(text: str) -> None:
    expected = json.loads(json.dumps(ast.literal_eval(text)))
    for edges in ([], range(len(text))):
        reader = TextReader()
        got = run(read_literal(reader), reader, cut(text + ")", edges))
        assert json.loads(got) == expected
    assert json.loads(whole_literal(text) or "") == expected
    assert whole_literal(text + ")") is None


@pytest.mark.parametrize(
    "text",
    [
        *["b'z'", "1e999", "1j", "f(x)", "x", "{1: 2}", "[1 2]", "'a", "'a\nb'", "{'a'}", "-", ""],
        *["1__", "[" * 100 + "]" * 100, r"'\x4'", r"'\U00110000'"],
    ],
)
def test_what_is_no_literal(text: str) -> None:
    reader = TextReader()
    with pytest.raises(MalformedError):
        run(read_literal(reader), reader, [text + ")"])
    assert whole_literal(text) is None
