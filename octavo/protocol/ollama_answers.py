"""Wire types of answers of Ollama's API. Durations are nanoseconds.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from octavo.protocol.chat import TokenLogprobs
from octavo.protocol.usage import CostFields

if TYPE_CHECKING:
    from octavo.errors import RequestError

API_VERSION = "0.12.11"
"""The version of Ollama whose API this is: clients decide by it what they may ask."""

_encoder = msgspec.json.Encoder()


def line(value: Any) -> bytes:
    """A JSON value on a line of its own (https://github.com/ndjson/ndjson-spec)."""
    return b"%b\n" % _encoder.encode(value)


class OllamaError(msgspec.Struct, frozen=True):
    """The body of an error, and the line that tells of one."""

    error: str

    @classmethod
    def of(cls, exc: RequestError) -> OllamaError:
        """The body that tells of this exception."""
        return cls(exc.message)


class OllamaCalledFunction(msgspec.Struct):
    """Which function, with what; of a call that was cut off, what was whole."""

    index: int
    name: str
    arguments: dict[str, Any]


class OllamaCall(msgspec.Struct):
    """A call of a tool, once it is whole."""

    id: str
    function: OllamaCalledFunction


class OllamaMessageAnswer(msgspec.Struct, kw_only=True):
    """A message, or what a line adds to it."""

    role: str = "assistant"
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaCall] | UnsetType = UNSET


class OllamaAnswer(CostFields, frozen=True, kw_only=True):
    """What chats and generations share. All after `done` is in the last line only.

    Attributes:
        load_duration: from the request's coming until the engine got it.
        prompt_eval_duration: from then until the first token, time in the queue included.
        eval_duration: from the first token to the end.
    """

    model: str
    created_at: datetime
    done: bool
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    logprobs: list[TokenLogprobs] | UnsetType = UNSET


class OllamaChatAnswer(OllamaAnswer, frozen=True, kw_only=True):
    """An answer of `/api/chat`, or a line of its stream."""

    message: OllamaMessageAnswer


class OllamaGenerateAnswer(OllamaAnswer, frozen=True, kw_only=True):
    """An answer of `/api/generate`, or a line of its stream; `context` has all tokens."""

    response: str
    thinking: str | UnsetType = UNSET
    context: list[int] | UnsetType = UNSET


class OllamaEmbedAnswer(CostFields, frozen=True, kw_only=True):
    """Vectors of length 1, in the order of the texts."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingsAnswer(CostFields, frozen=True):
    """One vector."""

    embedding: list[float]


class OllamaDetails(msgspec.Struct, kw_only=True):
    """What kind of model it is."""

    family: str
    families: list[str]
    quantization_level: str


class OllamaModel(msgspec.Struct, kw_only=True):
    """A model that is there. Its files' size and digest are not known to the server."""

    name: str
    model: str
    modified_at: datetime
    details: OllamaDetails


class OllamaModels(msgspec.Struct):
    """The answer of `/api/tags`."""

    models: list[OllamaModel]


class OllamaRunningModel(msgspec.Struct, kw_only=True):
    """A loaded model; it is never unloaded. `size_vram`: bytes on the GPU."""

    name: str
    model: str
    details: OllamaDetails
    expires_at: datetime
    context_length: int
    size_vram: int


class OllamaRunningModels(msgspec.Struct):
    """The answer of `/api/ps`."""

    models: list[OllamaRunningModel]


class OllamaShow(msgspec.Struct, kw_only=True):
    """The answer of `/api/show`; `template` is Jinja."""

    modified_at: datetime
    template: str
    parameters: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]


class OllamaVersion(msgspec.Struct):
    """The answer of `/api/version`."""

    version: str = API_VERSION
