"""What a request's body says to the model, whatever the route: its text in order, how many tokens
that may be, and hashes of its beginnings. Knows bodies' shapes, and neither headers nor routing.

Bodies are decoded JSON and not checked beyond what is read here: the backend does that. What has
an unknown shape counts as the text of its JSON, so that nothing is read and not counted.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from octavo.gateway.model import Route

HASH_BYTES = 16

NUM_TEMPLATE_TOKENS = 80
"""What chat templates put around a conversation, at most: a system message of their own, mostly."""

NUM_SPECIAL_TOKENS = 2
"""What tokenizers put around one text: a beginning and an end."""

NUM_MESSAGE_TOKENS = 8
"""What they put around one message."""

NUM_TOOL_TEMPLATE_TOKENS = 350
"""What they say about tools in general, at most."""

_LOWER = bytes(range(ord("a"), ord("z") + 1))
_UPPER = bytes(range(ord("A"), ord("Z") + 1))
_NOT_ASCII = bytes(range(128, 256))

_IMAGES = frozenset(("image_url", "input_image", "image"))
_MEDIA = frozenset(
    ("input_audio", "audio", "audio_url", "input_file", "file", "video_url", "document")
)
_DATA_CHARS_PER_TOKEN = 4
"""Of media in the body itself, as base64."""


class Prompt:
    """Collects what a body says.

    Args:
        tokens_per_image: what an image counts for, and other media at the least.

    Attributes:
        num_chars: of text in the prompt or messages.
        num_token_ids: of prompts that are given as tokens.
        num_prompts: whose answers are apart: more than one in a list of prompts.
        has_images: whether there are images.
        last_user: what the user says last, or all of a prompt that is one text.
    """

    def __init__(self, tokens_per_image: int) -> None:
        self.num_chars = 0
        self.num_token_ids = 0
        self.num_prompts = 1
        self.has_images = False
        self.last_user = ""
        self._pieces: list[str] = []
        self._further: list[str] = []
        self._marks: set[int] = set()
        self._repeated: list[tuple[bytes, int]] = []
        self._num_extra_tokens = 0
        self._tokens_per_image = tokens_per_image

    def read(self, route: Route, body: dict[str, Any]) -> None:
        """Take in a body.

        Raises:
            InvalidRequestError: what is said is not there, or has a wrong type; names the field.
        """
        if route in ("chat", "messages", "responses"):
            self._num_extra_tokens += NUM_TEMPLATE_TOKENS
            self._tools(body)
        if route == "chat":
            self._messages(_list(body, "messages"))
        elif route == "messages":
            self._content(body.get("system"))
            self._messages(_list(body, "messages"))
        elif route == "responses":
            self._response(body)
        elif route == "completions":
            self._texts(body.get("prompt"), "prompt")
            self._content(body.get("suffix"))
        elif route == "embeddings" and "messages" in body and "input" not in body:
            self._messages(_list(body, "messages"))
        elif route == "embeddings":
            self._texts(body.get("input"), "input")
        elif route == "rerank":
            self._pairs(body, "query", "documents")
        else:
            self._pairs(body, "text_1", "text_2")

    def num_tokens(self, *, by_bytes: bool) -> int:
        """About how many tokens it is; more than it turns out to be, for usual texts.

        Args:
            by_bytes: one per byte, which no tokenizer exceeds.
        """
        pieces = self._pieces
        if self._marks:
            pieces = [piece for i, piece in enumerate(pieces) if i not in self._marks]
        data = "".join((*pieces, *self._further)).encode()
        count = len if by_bytes else estimate
        repeated = sum(count(text) * times for text, times in self._repeated)
        num_extra = self._num_extra_tokens + NUM_SPECIAL_TOKENS * self.num_prompts
        return count(data) + repeated + self.num_token_ids + num_extra

    def hashes(self, seed: bytes, *, block_bytes: int, max_blocks: int) -> tuple[bytes, ...]:
        """Of its beginnings, in whole blocks: each over all before it, and the seed.

        A prompt shorter than a block has one hash, of all of it.
        """
        size, text = 0, []
        for piece in self._pieces:
            text.append(piece)
            size += len(piece)
            if size >= block_bytes * max_blocks:
                break
        data = "".join(text).encode()
        num_blocks = min(len(data) // block_bytes, max_blocks)
        if not num_blocks:
            return (_hash(seed + data),) if data else ()
        hashes = []
        for start in range(0, num_blocks * block_bytes, block_bytes):
            seed = _hash(seed + data[start : start + block_bytes])
            hashes.append(seed)
        return tuple(hashes)

    def _text(self, text: str) -> None:
        self._pieces.append(text)
        self.num_chars += len(text)

    def _mark(self, data: bytes) -> None:
        """Something that is no text: it tells prompts apart, and its tokens are counted apart."""
        self._marks.add(len(self._pieces))
        self._pieces.append(f"\n{_hash(data).hex()}\n")

    def _json(self, value: Any) -> None:
        """Something that has no text of its own, as its JSON."""
        self._text(msgspec.json.encode(value).decode())

    def _tools(self, body: dict[str, Any]) -> None:
        """Tools stand before the messages in most templates."""
        for name in ("tools", "functions"):
            if body.get(name):
                self._pieces.append(msgspec.json.encode(body[name]).decode())
                self._num_extra_tokens += NUM_TOOL_TEMPLATE_TOKENS
        for name in ("response_format", "text", "output_config", "output_format"):
            if isinstance(body.get(name), dict):
                self._further.append(msgspec.json.encode(body[name]).decode())

    def _messages(self, messages: list[Any]) -> None:
        for index, message in enumerate(messages):
            if not isinstance(message, dict):
                param = f"messages[{index}]"
                raise InvalidRequestError(f"{param} must be an object", param=param)
            self._message(message)

    def _message(self, message: dict[str, Any]) -> None:
        """One turn: who speaks, and everything that is said."""
        self._num_extra_tokens += NUM_MESSAGE_TOKENS
        role = message.get("role")
        self._pieces.append(f"\n{role}\n" if isinstance(role, str) else "\n")
        begin = len(self._pieces)
        self._content(message.get("content"))
        if role == "user":
            self.last_user = "".join(self._pieces[begin:])
        for name in ("reasoning", "reasoning_content", "name", "refusal"):
            self._content(message.get(name))
        for name in ("tool_calls", "function_call"):
            if message.get(name):
                self._json(message[name])

    def _content(self, content: Any) -> None:
        """A text, or a list of parts."""
        if isinstance(content, str):
            self._text(content)
        elif isinstance(content, list):
            for part in content:
                if isinstance(part, dict):
                    self._part(part)
                else:
                    self._content(part)
        elif content is not None:
            self._json(content)

    def _part(self, part: dict[str, Any]) -> None:
        kind = part.get("type")
        if not isinstance(kind, str):
            kind = None  # what is no text is in no set, and may have no hash
        if isinstance(part.get("text"), str):
            self._text(part["text"])
        elif kind in _IMAGES:
            self.has_images = True
            self._medium(part, 0)
        elif kind in _MEDIA:
            source = part.get("source")
            if isinstance(source, dict) and source.get("type") == "text":
                self._content(source.get("data"))
            else:
                self._medium(part, _DATA_CHARS_PER_TOKEN)
        elif kind == "tool_result":
            self._content(part.get("content"))
        elif isinstance(part.get("thinking"), str):
            self._text(part["thinking"])
        else:
            self._json(part)

    def _medium(self, part: dict[str, Any], chars_per_token: int) -> None:
        """Media count by number, and by length where their length says how much is in them."""
        data = msgspec.json.encode(part)
        num_tokens = len(data) // chars_per_token if chars_per_token else 0
        self._num_extra_tokens += max(self._tokens_per_image, num_tokens)
        self._mark(data)

    def _response(self, body: dict[str, Any]) -> None:
        """`/v1/responses`: a text, or items."""
        self._content(body.get("instructions"))
        given = body.get("input")
        if isinstance(given, str):
            self._message({"role": "user", "content": given})
            return
        for index, item in enumerate(_list(body, "input")):
            param = f"input[{index}]"
            if not isinstance(item, dict):
                raise InvalidRequestError(f"{param} must be an object", param=param)
            if item.get("type") == "item_reference":
                raise InvalidRequestError(
                    f"{param}: the gateway keeps no conversations: send the item itself",
                    param=param,
                )
            if item.get("type") in (None, "message"):
                self._message(item)
            else:
                self._num_extra_tokens += NUM_MESSAGE_TOKENS
                self._pieces.append("\n")
                self._json(item)

    def _texts(self, given: Any, param: str) -> None:
        """A text, texts, token ids, or lists of token ids."""
        if isinstance(given, str):
            self.last_user = given
            self._text(given)
            return
        if not isinstance(given, list):
            raise InvalidRequestError(
                f"{param} must be a text, or a list of texts or token ids", param=param
            )
        if given and type(given[0]) is int:
            given = [given]
        self.num_prompts = max(1, len(given))
        for index, item in enumerate(given):
            if isinstance(item, str):
                self._pieces.append("\n")
                self._text(item)
            elif isinstance(item, list):
                self.num_token_ids += len(item)
                self._mark(msgspec.json.encode(item))
            else:
                where = f"{param}[{index}]"
                raise InvalidRequestError(f"{where} must be a text or token ids", param=where)

    def _pairs(self, body: dict[str, Any], first: str, second: str) -> None:
        """Texts that are compared: each of the second with one, or the only one, of the first."""
        for name in (first, second):
            if name not in body:
                raise InvalidRequestError(f"Missing required field: {name}", param=name)
        left, right = (
            value if isinstance(value, list) else [value] for value in (body[first], body[second])
        )
        self._content(left)
        query = "".join(self._pieces)
        self._content(right)
        self._num_extra_tokens += NUM_MESSAGE_TOKENS * len(right)
        if len(left) == 1 and len(right) > 1:
            # It is read again with each of the others.
            self._repeated.append((query.encode(), len(right) - 1))


def estimate(data: bytes) -> int:
    """About how many tokens a text in UTF-8 is, on the high side: per letter, capital, space, other
    sign, and byte of other scripts, what byte-level vocabularies make of them at worst in usual
    texts. English prose comes out about twice as long as it is.
    """
    others = data.translate(None, _LOWER)
    num_lower = len(data) - len(others)
    rest = others.translate(None, _UPPER)
    num_upper = len(others) - len(rest)
    ascii_rest = rest.translate(None, _NOT_ASCII)
    num_not_ascii = len(rest) - len(ascii_rest)
    num_spaces = ascii_rest.count(b" ")
    num_signs = len(ascii_rest) - num_spaces
    hundredths = 60 * num_lower + 100 * num_upper + 75 * num_not_ascii + 50 * num_spaces
    return -(-(hundredths + 100 * num_signs) // 100)


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=HASH_BYTES).digest()


def _list(body: dict[str, Any], param: str) -> list[Any]:
    value = body.get(param)
    if not isinstance(value, list):
        what = "must be a list" if param in body else "is missing"
        raise InvalidRequestError(f"{param} {what}", param=param)
    return value
