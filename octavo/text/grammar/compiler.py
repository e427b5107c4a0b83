"""Compiled grammars, and what follows an output through one. Knows no requests and no tensors.

May be called from several threads at once: the library drops Python's lock while it works.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

import msgspec

from octavo.errors import InvalidRequestError
from octavo.text.grammar.source import PARAM, grammar_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import numpy as np
    from llguidance import LLExecutor, LLMatcher
    from numpy.typing import NDArray

    from octavo.text.tokenizer import Tokenizer
    from octavo.types import StructuredOutputs

MAX_CACHED = 256
"""Compiled grammars that are kept, those used last."""

STACK_BYTES = 2**28
"""Stack of the threads that compile: the library recurses over rules that refer to each other."""

MIN_PARALLEL_ROWS = 8
"""Fewer masks are written one by one: waking threads takes longer."""

MAX_FILL_THREADS = 8
"""Threads that write masks, as many as there are processors at most."""

MAX_REASON = 400
"""Characters of the library's own words in an error."""

_REGEX_ERROR = re.compile(r"^error: (.+)$", re.MULTILINE)
_T = TypeVar("_T")
_stack_size = threading.Lock()


class GrammarMatcher:
    """One output's place in its grammar.

    Attributes:
        failure: why it can tell no more, or None: a bound of the library's was hit, or a token was
            taken that it did not allow.
    """

    __slots__ = ("_matcher", "failure")

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.failure: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the output is complete: nothing may follow but its end."""
        return self.failure is None and self._matcher.is_stopped()

    @property
    def may_end(self) -> bool:
        """Whether the output so far is one of the grammar's."""
        return self.failure is None and self._matcher.is_accepting()

    def accept(self, token_id: int) -> bool:
        """Take the next token; False if it was not allowed."""
        if self.failure is None and not self._matcher.consume_token(token_id):
            self._note()
            self.failure = self.failure or "a token was not allowed"
        return self.failure is None

    def fill(self, bits: NDArray[np.uint32]) -> None:
        """Write which tokens are allowed next into [words]; those beyond the vocabulary are not."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, bits.view("i4")[None], 0)
        self._note()

    def _note(self) -> None:
        if self._matcher.is_error():
            self.failure = _reason(self._matcher.get_error())


class GrammarCompiler:
    """Compiles grammars for one tokenizer.

    Args:
        tokenizer_json: the tokenizer as the library `tokenizers` writes it.
        vocab_size: tokens that masks tell of; those that the tokenizer does not have are never
            allowed.
        eos_token_ids: allowed where an output may end, and nowhere else.
    """

    def __init__(
        self, tokenizer_json: str, *, vocab_size: int, eos_token_ids: Collection[int]
    ) -> None:
        from llguidance import LLParserLimits, LLTokenizer

        self._tokenizer = LLTokenizer(
            tokenizer_json, n_vocab=vocab_size, eos_token=sorted(eos_token_ids) or None
        )
        self._limits = LLParserLimits(verbose_errors=False)
        self._cache: OrderedDict[bytes, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, spec: StructuredOutputs) -> GrammarMatcher:
        """A matcher at the beginning of an output; compiles the grammar if it must.

        Raises:
            InvalidRequestError: there is no such grammar, or it is too large.
        """
        key = spec_key(spec)
        with self._lock:
            compiled = self._cache.get(key)
            if compiled is not None:
                self._cache.move_to_end(key)
        if compiled is None:
            compiled = self._compile(spec)
            with self._lock:
                self._cache[key] = compiled
                if len(self._cache) > MAX_CACHED:
                    self._cache.popitem(last=False)
        return GrammarMatcher(compiled.deep_copy())

    def fill_rows(self, matchers: Sequence[GrammarMatcher], bits: NDArray[np.uint32]) -> None:
        """What `fill` of each matcher does, for many of them at once: several threads share it.

        Args:
            matchers: m of them, each there once; one that fails says so.
            bits: [m, words], overwritten, contiguous.
        """
        if len(matchers) < MIN_PARALLEL_ROWS:
            for matcher, row in zip(matchers, bits, strict=True):
                matcher.fill(row)
            return
        from llguidance.numpy import fill_next_token_bitmask_par

        rows = [(matcher._matcher, index) for index, matcher in enumerate(matchers)]
        fill_next_token_bitmask_par(self._executor, rows, bits.view("i4"))
        for matcher in matchers:
            matcher._note()

    @functools.cached_property
    def _executor(self) -> LLExecutor:
        """Threads of the library's own."""
        from llguidance import LLExecutor

        return LLExecutor(max(1, min(MAX_FILL_THREADS, os.cpu_count() or 1)))

    def _compile(self, spec: StructuredOutputs) -> LLMatcher:
        from llguidance import LLMatcher

        text = grammar_text(spec)
        tokenizer, limits = self._tokenizer, self._limits
        compiled = in_deep_thread(lambda: LLMatcher(tokenizer, text, log_level=0, limits=limits))
        if compiled.is_error():
            raise refused(_reason(compiled.get_error()))
        return compiled


def compiler_for(tokenizer: Tokenizer, vocab_size: int) -> GrammarCompiler:
    """The compiler for a model's tokenizer."""
    known = [token_id for token_id in tokenizer.eos_token_ids if token_id < vocab_size]
    return GrammarCompiler(tokenizer.to_json(), vocab_size=vocab_size, eos_token_ids=known)


def spec_key(spec: StructuredOutputs) -> bytes:
    """What tells grammars apart: equal keys stand for equal grammars.

    Raises:
        InvalidRequestError: it holds what no message can carry.
    """
    bound = msgspec.structs.replace(spec, reasoning_end_token_ids=(), reasoning_start_token_ids=())
    try:
        return hashlib.sha256(msgspec.msgpack.encode(bound)).digest()
    except UnicodeEncodeError:
        raise refused("it holds half of a surrogate pair, which is no character") from None
    except OverflowError:
        raise refused("it holds a number beyond 64 bits") from None
    except RecursionError:
        raise refused("it is nested too deeply") from None


def refused(reason: str) -> InvalidRequestError:
    """The error that tells why a grammar cannot be used."""
    return InvalidRequestError(f"{PARAM}: it cannot be used: {reason}", param=PARAM)


def in_deep_thread(work: Callable[[], _T]) -> _T:
    """What `work` returns, called with a stack that deep recursion fits into."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    with _stack_size:  # it holds for every thread that is made meanwhile, which does no harm
        before = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="grammar-compile", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _reason(text: str) -> str:
    """The library's words on one line, without its parser's state and without the grammar."""
    if "NoExtensionBias" in text:
        return "there is no text that it allows"
    told = _REGEX_ERROR.search(text)
    if told is not None:
        return f"a regular expression: {told[1][:MAX_REASON]}"
    line = " ".join(text.partition("<state>")[0].replace("<non-verbose/>", "").split())
    return line[:MAX_REASON] or "no reason given"
