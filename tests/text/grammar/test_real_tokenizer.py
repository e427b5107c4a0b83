"""SmolLM2's vocabulary: real merges, and special tokens that are no text."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest

from octavo.text.grammar.compiler import GrammarCompiler, GrammarMatcher, compiler_for
from octavo.text.grammar.lark import MarkerTokens
from octavo.text.grammar.tool_calls import forced_calls
from octavo.text.tokenizer import load_tokenizer
from octavo.text.tools.registry import TOOL_PARSERS
from octavo.types import StructuredOutputs
from octavo.weights.open import open_checkpoint
from tests.text.tools.helper import TOOLS, calls_of, read

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.text.tokenizer import Tokenizer

PADDED = 49152 + 128
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"enum": ["a", "b c", "é"]}, "maxItems": 3},
        "size": {"type": "number", "minimum": -1.5, "maximum": 2000},
        "boss": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "tags", "boss"],
    "additionalProperties": False,
}

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(smollm2_path, open_checkpoint(smollm2_path).config)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return compiler_for(tokenizer, PADDED)


def allowed(matcher: GrammarMatcher) -> Any:
    bits = np.full(PADDED // 32, 0xFFFFFFFF, np.uint32)
    matcher.fill(bits)
    assert matcher.failure is None, matcher.failure
    return np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))


def walk(tokenizer: Tokenizer, matcher: GrammarMatcher, seed: int, most: int = 250) -> str | None:
    """An output drawn uniformly from the allowed tokens; quotes and brackets come more often."""
    chance = random.Random(seed)
    closing = {tokenizer.encode(text, add_special_tokens=False)[0] for text in '"}],'}
    ids: list[int] = []
    while not matcher.is_finished:
        may = allowed(matcher)
        assert may.size
        assert may[-1] < 49152
        ends = [token_id for token_id in may if int(token_id) in closing]
        token_id = int(chance.choice(ends if ends and chance.random() < 0.4 else list(may)))
        if token_id in tokenizer.eos_token_ids:
            assert matcher.may_end
            break
        assert token_id not in tokenizer.special_token_ids, "a special token is no text"
        assert matcher.accept(token_id)
        ids.append(token_id)
        if len(ids) == most:
            return None
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_random_outputs_satisfy_a_schema(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    spec = StructuredOutputs(json=PERSON)
    texts = [walk(tokenizer, compiler.matcher(spec), seed) for seed in range(12)]
    assert sum(text is not None for text in texts) >= 4
    for text in filter(None, texts):
        jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("tool_format", ["hermes", "llama3_json", "pythonic"])
def test_random_outputs_are_calls(
    tokenizer: Tokenizer, compiler: GrammarCompiler, tool_format: str
) -> None:
    tokens = MarkerTokens.of(tokenizer, TOOL_PARSERS[tool_format].markers)
    spec = forced_calls(TOOLS, tool_format, tokens, several=False)
    texts = [walk(tokenizer, compiler.matcher(spec), seed) for seed in range(6)]
    assert any(texts)
    for text in filter(None, texts):
        ((name, arguments),) = calls_of(read([text], tool_format))
        schemas = {tool["name"]: tool["parameters"] for tool in TOOLS}
        jsonschema.validate(arguments, schemas[name])


@pytest.mark.parametrize("indent", [None, 2])
def test_usual_json_is_allowed_in_its_usual_tokens(
    tokenizer: Tokenizer, compiler: GrammarCompiler, indent: int | None
) -> None:
    value = {"name": "Kari Nordmann", "tags": ["a", "b c"], "size": 17.5, "boss": None}
    matcher = compiler.matcher(StructuredOutputs(json=PERSON))
    for token_id in tokenizer.encode(json.dumps(value, indent=indent), add_special_tokens=False):
        assert token_id in allowed(matcher)
        assert matcher.accept(token_id)
    assert set(allowed(matcher)) == set(tokenizer.eos_token_ids)
