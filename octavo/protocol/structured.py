"""What a request may say its output's text must be, in OpenAI's and vLLM's spellings.

Sources: https://platform.openai.com/docs/guides/structured-outputs (`response_format`) and
https://docs.vllm.ai/en/latest/features/structured_outputs.html (the others).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.types import StructuredOutputs

if TYPE_CHECKING:
    from octavo.protocol.generation import GenerationRequest

GUIDED_FIELDS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
"""vLLM's older fields, and the kinds of structure that they ask for."""


class JSONSchemaSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A named JSON schema. It is always kept to, `strict` or not; name and description are labels.

    Attributes:
        schema: an object, or true for any JSON value.
    """

    name: str
    schema: dict[str, Any] | bool
    strict: bool | None = None
    description: str | None = None


class TextFormat(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class JSONObjectFormat(
    msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True
):
    """Any JSON object."""


class JSONObjectBySchemaFormat(
    msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True
):
    """Any JSON object, or JSON by a schema in `value`, as Hugging Face's client spells one.

    Source: `HFInferenceConversational` in `huggingface_hub`, for Text Generation Inference.
    """

    value: dict[str, Any] | bool | None = None


class JSONSchemaFormat(
    msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True
):
    """JSON by a schema."""

    json_schema: JSONSchemaSpec


ResponseFormat = TextFormat | JSONObjectBySchemaFormat | JSONSchemaFormat


class StructuredOutputsSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's `structured_outputs`; see `octavo.types.StructuredOutputs`."""

    json: dict[str, Any] | bool | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


def _asked(request: GenerationRequest) -> dict[str, dict[str, Any]]:
    """By field of the request: what it asks for, as `StructuredOutputs` spells it."""
    asked: dict[str, dict[str, Any]] = {}
    match request.response_format:
        case JSONObjectBySchemaFormat(value=None):
            asked["response_format"] = {"json_object": True}
        case JSONObjectBySchemaFormat(value=schema):
            asked["response_format"] = {"json": schema}
        case JSONSchemaFormat(json_schema=spec):
            asked["response_format"] = {"json": spec.schema}
    if request.structured_outputs is not None:
        asked["structured_outputs"] = msgspec.structs.asdict(request.structured_outputs)
    for name, kind in GUIDED_FIELDS.items():
        value = getattr(request, name)
        if value is not None:
            asked[name] = {kind: value}
    return asked


def structured_field(request: GenerationRequest) -> str:
    """The field by which the caller asks for a structure, for errors that name it."""
    return next(iter(_asked(request)), "structured_outputs")


def structured_outputs(request: GenerationRequest) -> StructuredOutputs | None:
    """What the output's text must be; None: anything.

    Raises:
        InvalidRequestError: several fields ask for a structure, or one asks for none or several.
    """
    asked = _asked(request)
    if not asked:
        return None
    name, *others = asked
    if others:
        raise InvalidRequestError(
            f"{name} and {others[0]} both say what the output must be: give one of them",
            param=others[0],
        )
    try:
        return StructuredOutputs(**asked[name])
    except InvalidRequestError as exc:
        message = exc.message
        if name != "structured_outputs":
            kind = next(iter(asked[name]))
            message = message.replace(f"structured_outputs.{kind}", name)
        raise InvalidRequestError(message, param=name) from None
