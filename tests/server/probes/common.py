"""Probes of the fields that completions and chats share; no table of its own."""

from __future__ import annotations

from typing import Any

from octavo.protocol.generation import HARMLESS_FIELDS
from tests.server.probes import Probe, changes, harmless, refused

_LABEL = "it says who asks or what for, and the answer is the same for all"
_VALUES: dict[str, Any] = {
    "metadata": {"a": "b"},
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "service_tier": "default",
    "user": "u",
}
HARMLESS: dict[str, Probe] = {
    name: harmless({name: _VALUES[name]}, _LABEL) for name in sorted(HARMLESS_FIELDS)
}
_STREAM: dict[str, Any] = {"stream": True}
_SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}


def _schema_format(**fields: Any) -> dict[str, Any]:
    spec = {"name": "x", "schema": _SCHEMA, **fields}
    return {"response_format": {"type": "json_schema", "json_schema": spec}}


def _structured(**fields: Any) -> dict[str, Any]:
    return {"structured_outputs": fields}


COMMON: dict[str, Probe] = {
    **HARMLESS,
    "model": refused({"model": "org/other"}, status=404),
    "temperature": changes({"temperature": 0.25}),
    "top_p": changes({"top_p": 0.5}),
    "top_k": changes({"top_k": 7}),
    "min_p": changes({"min_p": 0.125}),
    "seed": changes({"seed": 3}),
    "max_tokens": changes({"max_tokens": 5}),
    "min_tokens": changes({"min_tokens": 2}),
    "stop": changes({"stop": "q"}),
    "stop_token_ids": changes({"stop_token_ids": [120]}),
    "ignore_eos": changes({"ignore_eos": True}),
    "skip_special_tokens": changes({"skip_special_tokens": False}),
    "include_stop_str_in_output": changes(
        {"stop": "q", "include_stop_str_in_output": True}, {"stop": "q"}
    ),
    "presence_penalty": changes({"presence_penalty": 1.0}, neutral=({"presence_penalty": 0},)),
    "frequency_penalty": changes({"frequency_penalty": 1.0}, neutral=({"frequency_penalty": 0},)),
    "repetition_penalty": changes(
        {"repetition_penalty": 1.5}, neutral=({"repetition_penalty": 1},)
    ),
    "logit_bias": changes({"logit_bias": {"5": 1}}, neutral=({"logit_bias": {}},)),
    "allowed_token_ids": changes({"allowed_token_ids": [5, 6]}),
    "bad_words": changes({"bad_words": ["q"]}, neutral=({"bad_words": []},)),
    "stream": changes(_STREAM, neutral=({"stream": False},)),
    "stream_options": changes({**_STREAM, "stream_options": {"include_usage": True}}, _STREAM),
    "stream_options.include_usage": changes(
        {**_STREAM, "stream_options": {"include_usage": True}}, {**_STREAM, "stream_options": {}}
    ),
    "stream_options.continuous_usage_stats": changes(
        {**_STREAM, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {**_STREAM, "stream_options": {"include_usage": True}},
    ),
    "stream_options.include_obfuscation": refused(
        {**_STREAM, "stream_options": {"include_obfuscation": True}},
        {**_STREAM, "stream_options": {}},
        neutral=({**_STREAM, "stream_options": {"include_obfuscation": False}},),
    ),
    "return_token_ids": changes({"return_token_ids": True}),
    "n": changes({"n": 2}),
    "priority": changes({"priority": 1}),
    "cache_salt": changes({"cache_salt": "salt"}),
    "timeout": changes({"timeout": 30.0}),
    "spaces_between_special_tokens": refused(
        {"spaces_between_special_tokens": False},
        neutral=({"spaces_between_special_tokens": True},),
    ),
    "store": refused({"store": True}, neutral=({"store": False},)),
    "length_penalty": refused({"length_penalty": 2.0}, neutral=({"length_penalty": 1},)),
    "early_stopping": refused({"early_stopping": True}, neutral=({"early_stopping": False},)),
    "response_format": changes(
        {"response_format": {"type": "json_object"}},
        neutral=({"response_format": {"type": "text"}},),
    ),
    "response_format[json_object].value": changes(
        {"response_format": {"type": "json_object", "value": _SCHEMA}},
        {"response_format": {"type": "json_object"}},
    ),
    "response_format[json_schema].json_schema": changes(_schema_format()),
    "response_format[json_schema].json_schema.schema": changes(
        _schema_format(schema={"type": "array"}), _schema_format()
    ),
    "response_format[json_schema].json_schema.name": harmless(
        _schema_format(name="y"), "a label for people", _schema_format()
    ),
    "response_format[json_schema].json_schema.description": harmless(
        _schema_format(description="y"), "a label for people", _schema_format()
    ),
    "response_format[json_schema].json_schema.strict": harmless(
        _schema_format(strict=True), "schemas are always kept to", _schema_format()
    ),
    "structured_outputs": changes(_structured(regex="[a-z]+")),
    "structured_outputs.json": changes(_structured(json=_SCHEMA)),
    "structured_outputs.json_object": changes(_structured(json_object=True)),
    "structured_outputs.regex": changes(_structured(regex="[a-z]+")),
    "structured_outputs.choice": changes(_structured(choice=["a", "b"])),
    "structured_outputs.grammar": changes(_structured(grammar='start: "a"')),
    "guided_json": changes({"guided_json": _SCHEMA}),
    "guided_regex": changes({"guided_regex": "[a-z]+"}),
    "guided_choice": changes({"guided_choice": ["a", "b"]}),
    "guided_grammar": changes({"guided_grammar": 'start: "a"'}),
}
