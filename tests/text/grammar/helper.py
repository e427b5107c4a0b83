"""A tokenizer made here, and outputs drawn at random from what a grammar allows."""

from __future__ import annotations

import functools
import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from octavo.text.grammar.compiler import GrammarCompiler, GrammarMatcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.types import StructuredOutputs

ENDS = ("<|endoftext|>", "<|im_end|>")
NUM_PADDING = 40
"""Tokens that a model has and its tokenizer does not."""

_PROSE = [
    '{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3, "ok": true, "no": null}}',
    '[{"name": "f", "parameters": {"a": [1.5, -2e3], "b": {"c": "d"}}}, {"x": false}]',
    "[get_weather(city='Oslo', days=2), f(a=True, b=None)]",
    "<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n",
    "Größe, naïve façade, Быстрая лиса, こんにちは 😀, 2024-06-01T12:00:00Z",
    '{\n  "a": 1,\n    "b": [\n      "c"\n    ]\n}\n```json\n',
    "function commentary to=functions.f analysis assistant json",
]


@functools.cache
def tokenizer_json(
    special: tuple[str, ...] = (), plain: tuple[str, ...] = (), vocab_size: int = 700
) -> str:
    """Byte-level BPE with two end-of-sequence tokens (ids 0 and 1) and others of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(ENDS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=12,
    )
    tokenizer.train_from_iterator(_PROSE * 3, trainer)
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(list(plain))
    return tokenizer.to_str()


class Grammars:
    """A compiler, and the tokenizer to read its outputs with."""

    def __init__(self, special: tuple[str, ...] = (), plain: tuple[str, ...] = ()) -> None:
        text = tokenizer_json(special, plain)
        self.tokenizer = Tokenizer.from_str(text)
        self.num_tokens = self.tokenizer.get_vocab_size()
        self.vocab_size = self.num_tokens + NUM_PADDING
        self.special_token_ids = frozenset(self.tokenizer.token_to_id(s) for s in (*ENDS, *special))
        self.compiler = GrammarCompiler(text, vocab_size=self.vocab_size, eos_token_ids=(0, 1))

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def allowed(self, matcher: GrammarMatcher) -> list[int]:
        """The tokens that may come next."""
        bits = np.full(-(-self.vocab_size // 32), 0xFFFFFFFF, np.uint32)
        matcher.fill(bits)
        flags = np.unpackbits(bits.view(np.uint8), bitorder="little")
        return [int(token_id) for token_id in np.flatnonzero(flags)]

    def takes(self, spec: StructuredOutputs, text: str, *, by_mask: bool = True) -> bool:
        """Whether a text is one of the grammar's outputs, in its usual tokens.

        Args:
            by_mask: each token must be allowed beforehand. Where only one text can follow, masks
                allow its own tokens only, and those are others after half a character.
        """
        matcher = self.compiler.matcher(spec)
        for token_id in self.encode(text):
            if by_mask and token_id not in self.allowed(matcher):
                return False
            if not matcher.accept(token_id):
                return False
        return 0 in self.allowed(matcher)

    def walk(
        self,
        spec: StructuredOutputs,
        seed: int,
        *,
        max_tokens: int = 400,
        closings: Sequence[str] = ('"', "}", "]", "'", '"}', "0"),
    ) -> str | None:
        """An output, drawn uniformly from the allowed tokens, but for pieces of text that bring its
        parts to an end: they are written now and then where they are allowed. None: no end came.
        """
        chance = random.Random(seed)
        matcher = self.compiler.matcher(spec)
        ids: list[int] = []
        while len(ids) < max_tokens:
            allowed = self.allowed(matcher)
            assert matcher.failure is None, matcher.failure
            assert allowed, self.decode(ids)
            assert max(allowed) < self.num_tokens, "a token that the tokenizer does not have"
            assert (0 in allowed) == (1 in allowed) == matcher.may_end
            if matcher.may_end and chance.random() < 0.7:
                return self.decode(ids)
            following = [chance.choice(allowed)]
            if chance.random() < min(0.2 + len(ids) / 100, 0.9):
                piece = self.encode(chance.choice(closings))
                if matcher._matcher.validate_tokens(piece) == len(piece):
                    following = piece
            if following[0] in (0, 1):
                return self.decode(ids)
            for token_id in following:
                assert matcher.accept(token_id)
            ids += following
            if matcher.is_finished:
                return self.decode(ids)
        return None


def text_of(value: Any) -> str:
    """JSON as models write it."""
    return json.dumps(value, ensure_ascii=False)
