"""Token ids to text while they come, in pieces that never have to be taken back.

The state is an unfinished character, three bytes at most, so that a token costs the same however
long the text is. Knows nothing of stop strings or requests.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from octavo.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Text of the tokens that follow a prompt.

    For any chunking, the pieces together are `decode(ids)`; behind a prompt that has text, they
    are what `decode(prompt + ids)` adds to the prompt (so the first word keeps its space).

    Raises:
        UnsupportedModelError: the tokenizer's decoder does not work token by token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        shown_token_ids: Sequence[int] = (),
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        codec = tokenizer.codec
        if codec is None:
            raise UnsupportedModelError("this model's tokenizer cannot stream text token by token")
        self._codec = codec
        self._token_bytes = tokenizer.token_bytes
        hidden = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._hidden = hidden.difference(shown_token_ids) if shown_token_ids else hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")(codec.errors)
        tail = b""  # the prompt's last bytes: enough to know the character it may end within
        for token_id in reversed(prompt_token_ids):
            if token_id not in self._hidden:
                tail = self._token_bytes(token_id) + tail
            if len(tail) >= 3:
                break
        self._decoder.decode(tail[-3:])
        self._is_at_start = not tail

    def push(self, token_ids: Sequence[int]) -> str:
        """What these tokens add to the text, without a character that is still unfinished."""
        hidden, token_bytes = self._hidden, self._token_bytes
        return self._finish(
            self._decoder.decode(b"".join([token_bytes(i) for i in token_ids if i not in hidden]))
        )

    def flush(self) -> str:
        """U+FFFD for a character that never was finished, else nothing."""
        return self._finish(self._decoder.decode(b"", final=True))

    def _finish(self, text: str) -> str:
        if self._is_at_start and text:
            self._is_at_start = False
            return self._codec.strip_start(text)
        return text
