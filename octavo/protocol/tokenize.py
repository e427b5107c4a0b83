"""Wire types of `/tokenize` and `/detokenize`, in vLLM's shape."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.decode import Int32
from octavo.protocol.messages import Message, check_template_kwargs


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Either `prompt` or `messages` with the fields of a chat.

    `add_special_tokens` is by default true for a prompt and false for messages, whose template
    writes the special tokens itself.
    """

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None

    def check(self) -> None:
        """Refuse neither or both of prompt and messages, and chat fields beside a prompt.

        Raises:
            InvalidRequestError: names the field.
        """
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("give either prompt or messages", param="prompt")
        check_template_kwargs(self.chat_template_kwargs)
        if self.messages is not None:
            return
        for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
            if getattr(self, name) is not None:
                raise InvalidRequestError(
                    f"{name} is only allowed together with messages", param=name
                )


class TokenizeResponse(msgspec.Struct, kw_only=True):
    """Token ids of a text, and their texts when asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Token ids to turn into text, special tokens included."""

    model: str | None = None
    tokens: list[Int32]


class DetokenizeResponse(msgspec.Struct):
    """The text."""

    prompt: str
