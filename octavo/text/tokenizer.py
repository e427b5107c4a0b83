"""Text to token ids and back.

Every method may be called from several threads at once: nothing changes after construction but a
cache. Knows nothing of prompts, requests or models; where a vocabulary comes from is told by
`folder.py` and `gguf.py` (which also says where transformers' conversion, which we follow,
differs from llama.cpp's).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from octavo.errors import CheckpointError, InvalidRequestError
from octavo.text.codec import read_codec
from octavo.text.folder import parts_from_folder
from octavo.text.gguf import parts_from_gguf
from octavo.text.pieces import PieceTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import tokenizers

    from octavo.text.chat import ChatTemplate
    from octavo.text.parts import TokenizerParts


class Tokenizer:
    """A model's tokenizer and chat template.

    Attributes:
        vocab_size: every id that `encode` gives is below it. The model's output may be wider: ids
            from here on have no text.
        bos_token_id, eos_token_id: the named tokens' ids, or None.
        special_token_ids: what `skip_special_tokens` leaves out.
        eos_token_ids: every id that ends generation.
        codec: how tokens become bytes, or None for a decoder whose tokens have no bytes.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        backend = parts.backend
        self._backend = backend
        self._bytes: dict[int, bytes] = {}
        self.codec = read_codec(backend)
        self.special_token_ids = (
            frozenset(backend.special_ids)
            if isinstance(backend, PieceTokenizer)
            else frozenset(i for i, t in backend.get_added_tokens_decoder().items() if t.special)
        )
        self.vocab_size = parts.vocab_size
        self._special_tokens = named = parts.special_tokens
        self.bos_token_id = (
            backend.token_to_id(named["bos_token"]) if "bos_token" in named else None
        )
        self.eos_token_id = (
            backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
        )
        self.eos_token_ids = parts.eos_token_ids
        self._templates = parts.chat_template, parts.tool_template

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has one, also where it does not compile."""
        return any(self._templates)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """None where the model has none. Compiled when it is first asked for: the template engine
        takes longer to import than a plain prompt's tokens to compute.
        """
        source, tool_source = self._templates
        if not source and not tool_source:
            return None
        from octavo.text.chat import ChatTemplate

        return ChatTemplate(
            source or tool_source or "",
            tool_source=tool_source,
            special_tokens=self._special_tokens,
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens written in the text become their ids.

        Args:
            text: any text.
            add_special_tokens: put what the model expects around a text, such as its
                beginning-of-sequence token. False for what a chat template rendered.

        Raises:
            InvalidRequestError: the text holds half of a surrogate pair, which is not Unicode.
        """
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:
            if isinstance(text, str):
                raise InvalidRequestError("the text holds a lone surrogate") from None
            raise

    def encode_texts(
        self,
        first: str,
        second: str | None = None,
        *,
        add_special_tokens: bool = True,
        max_len: int | None = None,
    ) -> tuple[list[int], int | None]:
        """Token ids of a text or of a pair, and where the second text begins by its token types.

        Args:
            first: any text.
            second: another one, for models that compare two.
            add_special_tokens: around and between them.
            max_len: cut the ends of the texts, the longer one first, so that all tokens together,
                special ones included, are at most so many; None: cut nothing.

        Returns:
            The ids, and the index of the first token of type 1; None where all are of type 0.

        Raises:
            InvalidRequestError: a text is not Unicode, or `max_len` leaves no room for a text.
        """
        if second is None and max_len is None:
            return self.encode(first, add_special_tokens=add_special_tokens), None
        backend = self._full()
        try:
            if max_len is None:
                encoding = backend.encode(first, second, add_special_tokens=add_special_tokens)
            else:
                parts = [
                    backend.encode(text, add_special_tokens=False)
                    for text in (first, second)
                    if text is not None
                ]
                room = max_len
                if add_special_tokens:
                    room -= backend.num_special_tokens_to_add(second is not None)
                if room < len(parts):
                    raise InvalidRequestError(
                        f"{max_len} tokens leave no room for a text beside the special tokens",
                        param="truncate_prompt_tokens",
                    )
                for part, kept in zip(
                    parts, cut_lengths([len(p) for p in parts], room), strict=True
                ):
                    part.truncate(kept)
                encoding = backend.post_process(
                    parts[0], parts[1] if len(parts) > 1 else None, add_special_tokens
                )
        except TypeError:
            if all(isinstance(text, str | None) for text in (first, second)):
                raise InvalidRequestError("the text holds a lone surrogate") from None
            raise
        types = encoding.type_ids
        return encoding.ids, types.index(1) if second is not None and 1 in types else None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, unknown ids nothing.

        A broken character never changes its neighbours: here we part from the library, which
        replaces a whole run of byte tokens when one of them is broken.
        """
        if self.codec is None:
            return self._full().decode(list(ids), skip_special_tokens=skip_special_tokens)
        hidden = self.special_token_ids if skip_special_tokens else frozenset()
        data = b"".join([self.token_bytes(i) for i in ids if i not in hidden])
        return self.codec.strip_start(data.decode("utf-8", self.codec.errors))

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, which may be a piece of a character; unknown ids: none."""
        try:
            return self._bytes[token_id]
        except KeyError:
            pass
        if not 0 <= token_id < self.vocab_size:
            return b""
        piece = self._backend.id_to_token(token_id)
        if piece is None:
            data = b""
        elif self.codec is not None:
            data = self.codec.encode_piece(piece)
        else:
            data = self._full().decode([token_id], skip_special_tokens=False).encode()
        self._bytes[token_id] = data
        return data

    def token_text(self, token_id: int) -> str:
        """The token alone, as in OpenAI's logprobs: with its leading space, with U+FFFD for pieces
        of a character, with the name of a special token.
        """
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def compile_chat_template(self, source: str) -> ChatTemplate:
        """Another chat template, with this model's special tokens.

        Raises:
            InvalidRequestError: the source is no template.
        """
        from octavo.text.chat import ChatTemplate

        template = ChatTemplate(source, special_tokens=self._special_tokens)
        if template.error is not None:
            reason = template.error.rpartition("does not compile: ")[2]
            raise InvalidRequestError(
                f"chat_template does not compile: {reason}", param="chat_template"
            )
        return template

    def to_json(self) -> str:
        """The vocabulary and its rules as the library `tokenizers` writes them."""
        return self._full().to_str()

    def _full(self) -> tokenizers.Tokenizer:
        """The library's tokenizer, also where a part of it does for most."""
        backend = self._backend
        return backend.full if isinstance(backend, PieceTokenizer) else backend

    def require_chat_template(self) -> ChatTemplate:
        """The chat template.

        Raises:
            InvalidRequestError: the model has none.
        """
        if self.chat_template is None:
            raise InvalidRequestError(
                "this model has no chat template: use /v1/completions with a plain prompt",
                param="messages",
            )
        return self.chat_template


def cut_lengths(lengths: Sequence[int], room: int) -> list[int]:
    """What is kept of one text or of two, so that at most `room` tokens stay.

    Tokens are taken from the longer one until both are equal, then from both (transformers'
    `longest_first`).
    """
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    short = min(lengths)
    kept = [short, room - short] if 2 * short <= room else [room // 2, room - room // 2]
    return kept if lengths[0] <= lengths[1] else kept[::-1]


def load_folder(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder (see `folder.parts_from_folder`)."""
    return Tokenizer(parts_from_folder(path))


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describe (see `gguf.parts_from_gguf`)."""
    return Tokenizer(parts_from_gguf(metadata))


def load_tokenizer(checkpoint_path: Path, metadata: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint: a folder's files, or the metadata of a GGUF file.

    Raises:
        CheckpointError: files or keys are missing or make no sense.
    """
    if checkpoint_path.is_dir():
        return load_folder(checkpoint_path)
    if metadata is None:
        raise CheckpointError(f"{checkpoint_path} is not a folder, and brings no GGUF metadata")
    return from_gguf(metadata)
