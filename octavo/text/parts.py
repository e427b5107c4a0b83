"""What a tokenizer's file says, whatever its format: the value that readers hand to `Tokenizer`.

Knows no file format and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import tokenizers

    from octavo.text.pieces import PieceTokenizer


@dataclass(frozen=True)
class TokenizerParts:
    """Everything that `Tokenizer` is made of.

    Attributes:
        backend: the fast tokenizer, or its native stand-in, complete; nobody changes it after this.
        vocab_size: every id of a token is below it.
        special_tokens: `bos_token`, `eos_token`, ... and their texts, where the file names them.
        eos_token_ids: every id that ends generation.
        chat_template: Jinja source, or None.
        tool_template: Jinja source for requests that bring tools, where the file has one apart.
    """

    backend: tokenizers.Tokenizer | PieceTokenizer
    vocab_size: int
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    eos_token_ids: frozenset[int] = frozenset()
    chat_template: str | None = None
    tool_template: str | None = None
