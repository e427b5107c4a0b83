"""Wire types of requests to Ollama's API. Answers are in `ollama_answers`.

A field or option that this server does not have is refused by name, unless its value asks for
nothing. The model is loaded when the server starts and stays: how to load it, and for how long, is
accepted without effect.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.decode import Int32, Int64
from octavo.protocol.generation import Neutral, check_neutral
from octavo.protocol.tools import FunctionDefinition

NEUTRAL_OPTIONS: Neutral = {
    "num_keep": (None, -1, 0, 4),
    "mirostat": (None, 0),
    "tfs_z": (None, 1.0),
    "typical_p": (None, 1.0),
    "penalize_newline": (None, True),
    "vocab_only": (None, False),
    "embedding_only": (None, False),
    "logits_all": (None, False),
}
NEUTRAL_VALUES: Neutral = {
    "truncate": (None, False),
    "shift": (None, False),
}
NEUTRAL_GENERATE_VALUES: Neutral = {
    **NEUTRAL_VALUES,
    "suffix": (None, ""),
    "template": (None, ""),
    "images": (None, []),
}

_DURATION = re.compile(r"-?(\d+|(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+)")
KeepAlive = float | str


class OllamaOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How to sample, and hints on how to load the model.

    Attributes:
        num_predict: most tokens to generate; -1 or -2: as many as fit.
        num_ctx: the context that the caller needs; the server's must be as large.
        seed: -1: another one each time.
        repeat_last_n: how far penalties look back; here they look at the whole text, as -1 asks.
    """

    num_predict: Int32 | None = None
    temperature: float | None = None
    top_k: Int32 | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_last_n: Int32 | None = None
    num_ctx: Int32 | None = None

    # Harmless.
    numa: bool | None = None
    num_batch: Int32 | None = None
    num_gpu: Int32 | None = None
    main_gpu: Int32 | None = None
    num_thread: Int32 | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None

    # Not served: only neutral values pass.
    num_keep: Int32 | None = None
    mirostat: Int32 | None = None
    tfs_z: float | None = None
    typical_p: float | None = None
    penalize_newline: bool | None = None
    vocab_only: bool | None = None
    embedding_only: bool | None = None
    logits_all: bool | None = None

    def check(self, max_model_len: int) -> None:
        """Refuse what is not served.

        Args:
            max_model_len: the server's context, tokens.

        Raises:
            InvalidRequestError: names the option, without `options.` in front.
        """
        check_neutral(self, NEUTRAL_OPTIONS)
        if self.num_ctx is not None and self.num_ctx > max_model_len:
            raise InvalidRequestError(
                f"num_ctx is {self.num_ctx}, but this server's context has {max_model_len} "
                "tokens: ask for at most that, or start the server with --max-model-len",
                param="num_ctx",
            )
        if self.num_predict is not None and (self.num_predict < -2 or self.num_predict == 0):
            raise InvalidRequestError(
                f"num_predict must be at least 1, or -1 for as many tokens as fit, "
                f"got {self.num_predict}",
                param="num_predict",
            )
        has_penalty = self.repeat_penalty not in (None, 1.0)
        has_penalty |= bool(self.presence_penalty) or bool(self.frequency_penalty)
        if has_penalty and self.repeat_last_n not in (None, -1):
            raise InvalidRequestError(
                "repeat_last_n is not supported by this server, whose penalties look at the whole "
                "text: leave it out, or set it to -1",
                param="repeat_last_n",
            )


class OllamaFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of chats and generations. Null is the same as leaving a field out.

    Attributes:
        stream: true unless it says otherwise.
        format: `json` or a JSON schema; an empty text is none.
        keep_alive: seconds, or a duration such as `5m`; without effect.
        think: whether the model reasons, or how hard.
    """

    model: str
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: OllamaOptions | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None

    # Harmless.
    keep_alive: KeepAlive | None = None

    # Not served: only neutral values pass.
    truncate: bool | None = None
    shift: bool | None = None

    @property
    def is_streamed(self) -> bool:
        """Whether the answer comes in pieces."""
        return self.stream is not False


class OllamaFunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    """A call that the model made earlier; calls are in order, whatever `index` is."""

    name: str
    arguments: dict[str, Any]
    index: Int32 | None = None


class OllamaToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call of an earlier answer."""

    function: OllamaFunctionCall
    id: str | None = None
    type: Literal["function"] | None = None


class OllamaMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A message. A tool's result belongs to the call with its id; without one, to the first call of
    its `tool_name` that has no result yet, or to the first call at all.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    images: list[Any] | None = None


class OllamaTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool. Functions are the only kind that is served."""

    function: FunctionDefinition
    type: Literal["function"] | None = None


class OllamaChatRequest(OllamaFields, kw_only=True):
    """A conversation to be answered; without messages, the model is asked to be loaded."""

    messages: list[OllamaMessage] | None = None
    tools: list[OllamaTool] | None = None

    def check(self) -> None:
        """Refuse what is not served.

        Raises:
            InvalidRequestError: names the field.
        """
        check_neutral(self, NEUTRAL_VALUES)
        check_keep_alive(self.keep_alive, is_load=not self.messages)


class OllamaGenerateRequest(OllamaFields, kw_only=True):
    """A text to go on from; without one, the model is asked to be loaded.

    Attributes:
        raw: the prompt is all that the model sees; else it is a user's message in its template.
        context: tokens of an earlier generation, which come first.
    """

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    context: list[Int32] | None = None

    # Not served: only neutral values pass.
    suffix: str | None = None
    template: str | None = None
    images: list[Any] | None = None

    def check(self) -> None:
        """Refuse what is not served, and what a raw prompt has no place for.

        Raises:
            InvalidRequestError: names the field.
        """
        check_neutral(self, NEUTRAL_GENERATE_VALUES)
        check_keep_alive(self.keep_alive, is_load=not self.prompt)
        for name in ("system", "context", "think") if self.raw else ():
            if getattr(self, name):
                raise InvalidRequestError(f"{name} is not allowed when raw is true", param=name)


class OllamaEmbedRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Texts to embed. `truncate` false refuses texts that are too long, instead of cutting them."""

    model: str
    input: str | list[str]
    truncate: bool | None = None
    dimensions: Int32 | None = None
    options: OllamaOptions | None = None
    keep_alive: KeepAlive | None = None


class OllamaEmbeddingsRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text to embed, in the API's older shape."""

    model: str
    prompt: str | None = None
    options: OllamaOptions | None = None
    keep_alive: KeepAlive | None = None


class OllamaShowRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which model; `name` is the older name of `model`. Answers are complete without `verbose`."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


def check_keep_alive(keep_alive: KeepAlive | None, *, is_load: bool) -> None:
    """Refuse what is no duration, and to unload the model.

    Args:
        keep_alive: as given.
        is_load: nothing else is asked: 0 would then mean to unload the model.

    Raises:
        InvalidRequestError: names `keep_alive`.
    """
    if isinstance(keep_alive, str) and not _DURATION.fullmatch(keep_alive):
        raise InvalidRequestError(
            "keep_alive must be a number of seconds or a duration such as 5m", param="keep_alive"
        )
    is_zero = keep_alive is not None and not re.search("[1-9]", str(keep_alive))
    if is_load and is_zero:
        raise InvalidRequestError(
            "keep_alive: the model stays loaded while the server runs, it cannot be unloaded",
            param="keep_alive",
        )
