"""Hostile grammars, each tried out in a process of its own: it never takes anybody along."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from octavo.errors import InvalidRequestError
from octavo.text.grammar.check import PATIENCE_S, GrammarChecker
from octavo.text.grammar.check_process import Start
from octavo.types import StructuredOutputs
from tests.text.grammar.helper import Grammars, tokenizer_json
from tests.text.grammar.hostile import HOSTILE

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = StructuredOutputs(json={"type": "object", "properties": {"a": {"type": "integer"}}})
NUM_STEPS = 100
MOST_S = 2.0


@pytest.fixture(scope="module")
def checker(grammars: Grammars) -> Iterator[GrammarChecker]:
    start = Start(tokenizer_json(), grammars.vocab_size, [0, 1])
    made = GrammarChecker(lambda: start)
    made.check(GOOD)
    yield made
    made.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_soon(grammars: Grammars, checker: GrammarChecker, name: str) -> None:
    """They are refused within two seconds, or can be used: then each mask is there in time."""
    begin = time.perf_counter()
    error: InvalidRequestError | None = None
    try:
        spec = StructuredOutputs(**HOSTILE[name])
        checker.check(spec)
    except InvalidRequestError as caught:
        error = caught
    assert time.perf_counter() - begin < PATIENCE_S + MOST_S
    if error is not None:
        assert error.param == "structured_outputs"
        assert 20 < len(error.message) < 600
        return
    matcher = grammars.compiler.matcher(spec)
    begin, slowest = time.perf_counter(), 0.0
    for step in range(NUM_STEPS):
        since = time.perf_counter()
        allowed = grammars.allowed(matcher)
        slowest = max(slowest, time.perf_counter() - since)
        if matcher.failure is not None or not matcher.accept(allowed[step % len(allowed)]):
            assert matcher.failure
            break
        if matcher.is_finished:
            break
    assert slowest < MOST_S
    assert time.perf_counter() - begin < 2 * MOST_S


def test_good_ones_pass_while_bad_ones_are_tried(checker: GrammarChecker) -> None:
    checker.check(GOOD)
    with pytest.raises(InvalidRequestError):
        checker.check(StructuredOutputs(json={"type": "integer", "multipleOf": 999979}))
    checker.check(StructuredOutputs(regex="[a-z]+"))


def test_what_allows_no_text_is_refused(checker: GrammarChecker) -> None:
    with pytest.raises(InvalidRequestError, match="no text that it allows"):
        checker.check(StructuredOutputs(json={"$ref": "#"}))


def test_verdicts_are_remembered(checker: GrammarChecker) -> None:
    slow = StructuredOutputs(**HOSTILE["schema prime multiples"])
    for _ in range(2):
        begin = time.perf_counter()
        with pytest.raises(InvalidRequestError, match="takes"):
            checker.check(slow)
    assert time.perf_counter() - begin < 0.2


def test_a_process_that_dies_is_told_of_and_replaced(grammars: Grammars) -> None:
    start = Start(tokenizer_json(), grammars.vocab_size, [0, 1])
    checker = GrammarChecker(lambda: start)
    try:
        checker.check(GOOD)
        for process in checker._processes:
            if process._popen is not None:
                process._popen.kill()
                process._popen.wait()
        for number in range(4):
            checker.check(StructuredOutputs(regex=f"a{number}"))
    finally:
        checker.close()
    assert all(p._popen is None or p._popen.wait(5) is not None for p in checker._processes)
