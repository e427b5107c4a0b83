"""What requests for vectors, labels and scores have in common, and wire types of `/pooling` and
`/classify`, in vLLM's shape.
"""

from __future__ import annotations

import time
from typing import Any, Literal, cast
from uuid import uuid4

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.decode import Int32
from octavo.protocol.usage import CostFields
from octavo.types import RequestOptions

MAX_INPUTS = 2048
"""Most inputs in one request (OpenAI's bound)."""

Input = str | list[str | Int32 | list[Int32]]
"""A text, texts, token ids, or lists of token ids; `inputs_of` refuses mixtures."""

EncodingFormat = Literal["float", "base64"]


class PoolingFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of every request that is not answered with text.

    Attributes:
        model: a served name.
        truncate_prompt_tokens: cut longer inputs to so many tokens, special ones included; -1: to
            what the model takes. Without it, too long an input is refused.
        use_activation: false gives what the model computed as it is: embeddings of any length,
            logits instead of probabilities.
        priority, timeout: as in a completion.
        user: accepted without effect.
    """

    model: str
    truncate_prompt_tokens: Int32 | None = None
    use_activation: bool | None = None
    priority: Int32 | None = None
    timeout: float | None = None
    user: str | None = None

    def options(self, tenant: str) -> RequestOptions:
        """How the engine shall treat the request.

        Raises:
            InvalidRequestError: a value is out of range.
        """
        return RequestOptions(priority=self.priority or 0, timeout_s=self.timeout, tenant=tenant)

    def max_len(self, max_model_len: int) -> int | None:
        """To how many tokens inputs are cut; None: they are not.

        Raises:
            InvalidRequestError: `truncate_prompt_tokens` is out of range.
        """
        wanted = self.truncate_prompt_tokens
        if wanted == -1:
            return max_model_len
        if wanted is not None and not 1 <= wanted <= max_model_len:
            raise InvalidRequestError(
                f"truncate_prompt_tokens must be in 1..{max_model_len}, the model's maximum, or "
                f"-1 for it; got {wanted}",
                param="truncate_prompt_tokens",
            )
        return wanted


class InputUsage(CostFields, frozen=True):
    """Tokens of one HTTP request, summed over its inputs."""

    prompt_tokens: int
    total_tokens: int


class Answer(msgspec.Struct, kw_only=True):
    """What every answer begins with."""

    id: str
    model: str
    usage: InputUsage
    created: int = msgspec.field(default_factory=lambda: int(time.time()))
    object: Literal["list"] = "list"


class PoolingRequest(PoolingFields, kw_only=True):
    """A request for what the model makes of each input.

    `task` says which; left out, it is what the server was started for.
    """

    input: Input
    task: Literal["embed", "classify", "score"] | None = None
    dimensions: Int32 | None = None
    encoding_format: EncodingFormat | None = None
    add_special_tokens: bool | None = None


class PoolingData(msgspec.Struct, kw_only=True):
    """One input's vector: numbers, or base64 of float32."""

    index: int
    data: list[float] | str
    object: Literal["pooling"] = "pooling"


class PoolingAnswer(Answer, kw_only=True):
    """Vectors in the order of the inputs."""

    data: list[PoolingData]


class ClassificationRequest(PoolingFields, kw_only=True):
    """A request for the probabilities of labels."""

    input: Input
    add_special_tokens: bool | None = None


class Classification(msgspec.Struct, kw_only=True):
    """One input's most probable label, and the probabilities of all."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassificationAnswer(Answer, kw_only=True):
    """In the order of the inputs."""

    data: list[Classification]


def answer_id(prefix: str) -> str:
    """A new answer's id."""
    return f"{prefix}-{uuid4().hex}"


def inputs_of(value: Any, *, param: str = "input") -> list[str | list[int]]:
    """The inputs of an `Input` field: texts, or lists of token ids.

    Raises:
        InvalidRequestError: kinds mixed in one list, no input, too many, or no token ids in one.
    """
    if isinstance(value, str):
        return [value]
    kinds = {type(item) for item in value}
    if not kinds:
        raise InvalidRequestError(f"{param} must not be empty", param=param)
    if len(kinds) > 1:
        raise InvalidRequestError(
            f"{param} must hold texts only, token ids only, or lists of token ids only", param=param
        )
    if kinds == {int}:
        return [cast("list[int]", value)]
    check_number(len(value), param)
    for index, item in enumerate(value):
        if isinstance(item, list) and not item:
            raise InvalidRequestError(
                f"{param}[{index}] must not be empty", param=f"{param}[{index}]"
            )
    return cast("list[str | list[int]]", value)


def check_number(number: int, param: str) -> None:
    """Refuse more inputs than one request may have.

    Raises:
        InvalidRequestError: there are more than `MAX_INPUTS`.
    """
    if number > MAX_INPUTS:
        raise InvalidRequestError(
            f"{param} holds {number} inputs, at most {MAX_INPUTS} are allowed", param=param
        )
