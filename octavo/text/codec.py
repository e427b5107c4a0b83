"""From a token to its exact bytes, for the two kinds of vocabulary that language models use.

Byte-level BPE spells each byte as one printable character. SentencePiece spells a space as `▁` and
a byte that no piece covers as `<0x0A>`. In both, text is the tokens' bytes in a row, read as UTF-8;
that is what makes it possible to stream text with a state of three bytes.

Knows nothing of ids: it sees a token's text, and the description of the tokenizer's decoder.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import tokenizers

    from octavo.text.pieces import PieceTokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

PER_BYTE = "octavo.replace_each_byte"
"""Error handler for `bytes.decode`: one U+FFFD for each byte that is not UTF-8."""


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(PER_BYTE, _replace_each_byte)


@cache
def byte_alphabet() -> Mapping[int, str]:
    """Byte to character of byte-level BPE (GPT-2's table): printable Latin-1 stands for itself,
    the other bytes take, in order, the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = (byte for byte in range(256) if byte not in printable)
    table = {byte: chr(0x100 + index) for index, byte in enumerate(rest)}
    return table | {byte: chr(byte) for byte in printable}


@cache
def _byte_of_char() -> Mapping[str, int]:
    return {char: byte for byte, char in byte_alphabet().items()}


@dataclass(frozen=True)
class TokenCodec:
    """How a vocabulary's tokens become bytes, and bytes become text.

    Attributes:
        is_byte_level: the tokens are written in `byte_alphabet`; otherwise as SentencePiece does.
        replacements: texts to replace in a token, in order (`▁` by a space).
        has_byte_pieces: `<0x0A>` is a byte.
        num_stripped_spaces: spaces to drop at the very beginning of a text.
        errors: error handler of `bytes.decode` for bytes that are not UTF-8.
    """

    is_byte_level: bool
    replacements: tuple[tuple[str, str], ...] = ()
    has_byte_pieces: bool = False
    num_stripped_spaces: int = 0
    errors: str = "replace"

    def encode_piece(self, piece: str) -> bytes:
        """The bytes of one token, given as the vocabulary spells it."""
        if self.is_byte_level:
            try:
                return bytes(map(_byte_of_char().__getitem__, piece))
            except KeyError:  # an added token, in plain text
                return piece.encode()
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        if self.has_byte_pieces and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return piece.encode()

    def strip_start(self, text: str) -> str:
        """`text`, the beginning of a whole text, without the spaces that encoding put there."""
        num_spaces = len(text) - len(text.lstrip(" "))
        return text[min(self.num_stripped_spaces, num_spaces) :]


def read_codec(backend: tokenizers.Tokenizer | PieceTokenizer) -> TokenCodec | None:
    """The codec that does what the tokenizer's decoder does, or None for a decoder of another kind
    (WordPiece, Metaspace, CTC), whose tokens have no bytes of their own.
    """
    decoder = backend.decoder
    if decoder is None:
        return None
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return TokenCodec(is_byte_level=True)
    # The one order in which a step per token equals a step over the text: replacements, byte
    # pieces, fuse, strip.
    order = {"Replace": 0, "ByteFallback": 1, "Fuse": 2, "Strip": 3}
    ranks = [order.get(kind, -1) for kind in kinds]
    if (
        -1 in ranks
        or ranks != sorted(ranks)
        or kinds.count("Fuse") != 1
        or kinds.count("Strip") > 1
    ):
        return None
    replacements = []
    num_stripped_spaces = 0
    for step in steps:
        if step["type"] == "Replace":
            if "String" not in step["pattern"]:
                return None
            replacements.append((step["pattern"]["String"], step["content"]))
        if step["type"] == "Strip":
            if step["content"] != " " or step["stop"] != 0:
                return None
            num_stripped_spaces = step["start"]
    return TokenCodec(
        is_byte_level=False,
        replacements=tuple(replacements),
        has_byte_pieces="ByteFallback" in kinds,
        num_stripped_spaces=num_stripped_spaces,
        errors=PER_BYTE,
    )
