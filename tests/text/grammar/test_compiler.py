"""Matchers: what they allow, token by token, against Python's own expressions and strings."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.text.grammar.compiler import MAX_CACHED, GrammarCompiler, spec_key
from octavo.types import StructuredOutputs
from tests.text.grammar.helper import Grammars, tokenizer_json
from tests.text.grammar.hostile import HOSTILE

YES_OR_NO = StructuredOutputs(choice=["yes", "no"])


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys; import octavo.text.grammar, octavo.text.grammar.compiler, "
        "octavo.text.grammar.check, octavo.text.grammar.tool_calls; "
        "sys.exit(any(name.split('.')[0] in ('llguidance', 'torch') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ends_are_allowed_where_the_output_may_end_and_nowhere_else(grammars: Grammars) -> None:
    matcher = grammars.compiler.matcher(StructuredOutputs(regex="a{2,3}"))
    seen = []
    for _ in range(3):
        seen.append([end in grammars.allowed(matcher) for end in (0, 1)])
        assert matcher.accept(grammars.encode("a")[0])
    assert seen == [[False, False], [False, False], [True, True]]
    assert matcher.is_finished
    assert set(grammars.allowed(matcher)) <= {0, 1}


@pytest.mark.parametrize("end", [0, 1])
def test_any_end_is_taken(grammars: Grammars, end: int) -> None:
    matcher = grammars.compiler.matcher(StructuredOutputs(regex="a*"))
    assert not matcher.is_finished
    assert matcher.may_end
    assert matcher.accept(end)
    assert matcher.is_finished
    assert matcher.failure is None


def test_tokens_beyond_the_tokenizer_are_never_allowed(grammars: Grammars) -> None:
    assert grammars.vocab_size > grammars.num_tokens
    matcher = grammars.compiler.matcher(StructuredOutputs(regex="(?s:.*)"))
    allowed = grammars.allowed(matcher)
    assert len(allowed) > grammars.num_tokens // 2
    assert max(allowed) < grammars.num_tokens


def test_a_token_that_is_not_allowed_is_told(grammars: Grammars) -> None:
    matcher = grammars.compiler.matcher(YES_OR_NO)
    assert not matcher.accept(grammars.encode("{")[0])
    assert matcher.failure
    assert not matcher.is_finished
    assert not matcher.may_end
    assert not matcher.accept(grammars.encode("y")[0])


def test_matchers_of_one_grammar_go_their_own_ways(grammars: Grammars) -> None:
    first, second = (grammars.compiler.matcher(YES_OR_NO) for _ in range(2))
    before = grammars.allowed(second)
    assert first.accept(grammars.encode("n")[0])
    assert grammars.allowed(second) == before
    assert grammars.allowed(first) == grammars.encode("o")


def test_the_cache_is_bounded_and_used() -> None:
    compiler = GrammarCompiler(tokenizer_json(), vocab_size=700, eos_token_ids=(0,))
    for number in range(MAX_CACHED + 8):
        compiler.matcher(StructuredOutputs(regex=f"a{number}"))
    assert len(compiler._cache) == MAX_CACHED
    slow = StructuredOutputs(**HOSTILE["schema many properties"])
    begin = time.perf_counter()
    compiler.matcher(slow)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    compiler.matcher(slow)
    assert time.perf_counter() - begin < first / 2


def test_keys_leave_reasoning_out() -> None:
    bound = StructuredOutputs(regex="a", reasoning_end_token_ids=[5])
    assert spec_key(bound) == spec_key(StructuredOutputs(regex="a"))
    assert spec_key(bound) != spec_key(StructuredOutputs(choice=["a"]))


def test_several_threads_at_once(grammars: Grammars) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(15):
                spec = StructuredOutputs(regex=f"[ab]{{3}}x{(number + turn) % 5}")
                text = grammars.walk(spec, turn)
                assert text is not None
                assert re.fullmatch(str(spec.regex), text)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_other_threads_run_while_one_compiles(grammars: Grammars) -> None:
    """The longest time for which a thread that wants to run cannot, a quarter of the compile's."""
    longest, stop = 0.0, threading.Event()

    def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    grammars.compiler.matcher(StructuredOutputs(**HOSTILE["schema pattern bomb"]))
    for count in (2900, 2901, 2902, 2903):
        properties = {f"p{i}": {"type": "string"} for i in range(count)}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        grammars.compiler.matcher(StructuredOutputs(json=schema))
    took = time.perf_counter() - begin
    stop.set()
    thread.join()
    assert longest < max(took / 4, 0.1)


EXPRESSIONS = (
    r"\d{3}-\d{4}",
    r"[A-Z][a-z]{1,5}( [A-Z][a-z]{1,5})?",
    r"(foo|ba[rz])+",
    r"-?(0|[1-9][0-9]{0,4})(\.[0-9]{1,3})?",
    r"[^\s/]{2,6}/[^\s/]+",
    r"(?i:yes|no)!?",
    r"a|ab|abc",
    r"é{2}[à-ü]\U0001F600?",
    r'"([^"\\]|\\["\\n])*"',
    r"x{0}y*",
)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_outputs_match_the_expression(grammars: Grammars, expression: str) -> None:
    if "U0001F600" in expression:
        expression = expression.replace(r"\U0001F600", "😀")
    spec = StructuredOutputs(regex=expression)
    texts = [text for seed in range(12) if (text := grammars.walk(spec, seed)) is not None]
    assert texts
    for text in texts:
        assert re.fullmatch(expression, text), text


@given(expression=st.sampled_from(EXPRESSIONS[:5]), text=st.text("abfoz019-. A/é", max_size=7))
@settings(max_examples=60, deadline=None)
def test_texts_are_taken_as_python_matches_them(
    grammars: Grammars, expression: str, text: str
) -> None:
    is_match = re.fullmatch(expression, text) is not None
    assert grammars.takes(StructuredOutputs(regex=expression), text) == is_match


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_choices_are_exact(grammars: Grammars, choices: list[str], data: st.DataObject) -> None:
    spec = StructuredOutputs(choice=choices)
    for choice in choices:
        assert grammars.takes(spec, choice, by_mask=False)
    text = grammars.walk(spec, data.draw(st.integers(0, 99)), closings=choices)
    assert text in choices
    other = data.draw(st.text(max_size=9))
    assert grammars.takes(spec, other, by_mask=False) == (other in choices)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"regex": "(("}, "unclosed group"),
        ({"regex": r"(a)\1"}, "backreferences are not supported"),
        ({"regex": "\ud800"}, "surrogate"),
        ({"json": {"const": 2**70}}, "64 bits"),
        ({"json": {"contains": {}}}, "contains"),
        ({"json": {"type": "strin"}}, "strin"),
        ({"json": "{"}, "not valid JSON"),
        ({"json": False}, "allows nothing"),
        ({"grammar": "start: a"}, "unknown name"),
        ({"grammar": "root ::= (("}, "GBNF"),
        ({"choice": [""]}, "empty"),
    ],
)
def test_errors_say_what_is_wrong(grammars: Grammars, spec: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        grammars.compiler.matcher(StructuredOutputs(**spec))  # type: ignore[arg-type]
    assert caught.value.param == "structured_outputs"
    assert len(caught.value.message) < 600


GBNF = r"""
root   ::= answer ws list
answer ::= "yes" | "no"   # a comment
ws     ::= [ \t]*
list   ::= "[" [0-9]+ ("," [a-f]{2})? "]"
"""


def test_gbnf_and_lark_say_the_same(grammars: Grammars) -> None:
    lark = r"""
start: answer WS list
answer: "yes" | "no"
WS: /[ \t]*/
list: "[" /[0-9]+/ ("," /[a-f]{2}/)? "]"
"""
    pattern = r"(yes|no)[ \t]*\[[0-9]+(,[a-f]{2})?\]"
    for grammar in (GBNF, lark):
        spec = StructuredOutputs(grammar=grammar)
        for text in ("yes [12]", "no[3,ab]", "no\t[3,ab]", "maybe[1]", "yes[]", "yes[1,a]", "yes"):
            assert grammars.takes(spec, text) == bool(re.fullmatch(pattern, text)), text
        for seed in range(8):
            text = grammars.walk(spec, seed)
            assert text is None or re.fullmatch(pattern, text)


@pytest.mark.parametrize("num_rows", [1, 40])
def test_many_rows_are_what_each_is_alone(grammars: Grammars, num_rows: int) -> None:
    compiler = grammars.compiler
    specs = [YES_OR_NO, StructuredOutputs(regex="[a-c]+"), StructuredOutputs(json_object=True)]
    matchers = [compiler.matcher(specs[row % 3]) for row in range(num_rows)]
    failed = compiler.matcher(YES_OR_NO)
    assert not failed.accept(grammars.encode("{")[0])
    matchers.append(failed)
    bits = np.full((num_rows + 1, -(-grammars.vocab_size // 32)), 0xFFFFFFFF, np.uint32)
    compiler.fill_rows(matchers, bits)
    for row, matcher in zip(bits[:num_rows], matchers, strict=False):
        alone = np.full_like(row, 0xFFFFFFFF)
        matcher.fill(alone)
        assert (row == alone).all()
        assert row.any()
        assert matcher.failure is None
    assert failed.failure
