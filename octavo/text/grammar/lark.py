"""Writes Lark as llguidance reads it: rules with literals, markers, JSON schemas. Knows no format.

Source: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from octavo.text.grammar.source import WHITESPACE, quoted

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

ANY_TEXT = "(?s:.*)"
"""Any text, as an expression."""


class KnowsTokens(Protocol):
    """What is asked of a tokenizer here."""

    @property
    def special_token_ids(self) -> Container[int]:
        """Ids of special tokens."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The text's token ids."""
        ...


@dataclass(frozen=True)
class MarkerTokens:
    """Which markers one tokenizer has as tokens of their own; the others are text.

    Attributes:
        special: ids of those that are special tokens.
        plain: ids of those that are ordinary ones.
    """

    special: Mapping[str, int] = field(default_factory=dict)
    plain: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: KnowsTokens, markers: Iterable[str]) -> MarkerTokens:
        """Look the markers up."""
        special: dict[str, int] = {}
        plain: dict[str, int] = {}
        for marker in markers:
            ids = tokenizer.encode(marker, add_special_tokens=False)
            if len(ids) == 1:
                is_special = ids[0] in tokenizer.special_token_ids
                (special if is_special else plain)[marker] = ids[0]
        return cls(special, plain)

    def __contains__(self, marker: object) -> bool:
        """Whether it is a token."""
        return marker in self.special or marker in self.plain


class LarkWriter:
    """A grammar that grows rule by rule; what the methods return stands in other rules.

    Args:
        tokens: which markers are tokens.
    """

    def __init__(self, tokens: MarkerTokens) -> None:
        self.tokens = tokens
        self._lines: list[str] = []
        self._terminals: dict[str, str] = {}

    def rule(self, body: str) -> str:
        """A new rule."""
        name = f"r{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return name

    def terminal(self, body: str) -> str:
        """A terminal: one regular expression, put together."""
        name = self._terminals.get(body)
        if name is None:
            name = self._terminals[body] = f"T{len(self._lines)}"
            self._lines.append(f"{name}: {body}")
        return name

    def choice(self, bodies: Sequence[str]) -> str:
        """A new rule: one of these."""
        return self.rule(" | ".join(bodies))

    def repeated(self, body: str, separator: str, *, several: bool) -> str:
        """A new rule: once, or several times with something between them."""
        return self.rule(f"{body} ({separator} {body})*" if several else body)

    def marker(self, text: str) -> str:
        """A marker: its token if it has one. Tokens that are no special ones may be spelled out."""
        if text in self.tokens.special:
            return f"<[{self.tokens.special[text]}]>"
        if text in self.tokens.plain:
            return f"(<[{self.tokens.plain[text]}]> | {literal(text)})"
        return literal(text)

    def json(self, schema: Mapping[str, Any]) -> str:
        """A new rule: JSON by a schema, with the whitespace that all JSON here may have."""
        options = {"whitespace_pattern": WHITESPACE}
        return self.rule("%json " + json.dumps({**schema, "x-guidance": options}))

    def grammar(self, start: str) -> str:
        """All of it."""
        return "\n".join(("%llguidance {}", f"start: {start}", *self._lines, ""))


def literal(text: str) -> str:
    """Exactly this text."""
    return quoted(text)


def regex(expression: str) -> str:
    """What an expression matches; it holds no line break of its own."""
    return "/" + expression.replace("/", r"\/") + "/"
