"""The fields of `/v1/responses`."""

from __future__ import annotations

from typing import Any

from tests.server.probes import Probe, Table, changes, harmless, refused

_STREAM = {"stream": True}
_LOGPROBS = {"include": ["message.output_text.logprobs"]}
_SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
_READ_AS_TEXT = "a note on an earlier answer, of which the model reads the text"
_A_NAME = "a name of the item, which only lists of items show"


def _tools(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "name": "f", **fields}]}


def _schema(**fields: Any) -> dict[str, Any]:
    return {
        "text": {"format": {"type": "json_schema", "name": "x", "schema": _SCHEMA, **fields}},
    }


def _items(*items: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "hello"}, *items]}


def _said(part: str, text: str = "hi", **fields: Any) -> dict[str, Any]:
    key = "refusal" if part == "refusal" else "text"
    return _items({"role": "assistant", "content": [{"type": part, key: text, **fields}]})


def _asked(text: str) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [{"type": "input_text", "text": text}]}]}


def _thought(**fields: Any) -> dict[str, Any]:
    return _items({"type": "reasoning", "summary": [], **fields})


def _called(call: dict[str, Any] | None = None, **output: Any) -> dict[str, Any]:
    return _items(
        {
            "type": "function_call",
            "call_id": "c",
            "name": "f",
            "arguments": "{}",
            **(call or {}),
        },
        {"type": "function_call_output", "call_id": "c", "output": "1", **output},
    )


def _logprobs(**fields: Any) -> dict[str, Any]:
    entry = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": [], **fields}
    return _said("output_text", logprobs=[entry])


def _top(**fields: Any) -> dict[str, Any]:
    return _logprobs(top_logprobs=[{"token": "a", "logprob": -1.0, "bytes": [97], **fields}])


def _null(name: str) -> Probe:
    """A field that only null passes."""
    message = {"role": "user", "content": "hi", name: "x"}
    return refused({"input": [message]}, name=f"input[0].{name}")


_INPUT: dict[str, Probe] = {
    "input": changes({"input": "other"}),
    "input[].type": refused({"input": [{"type": "x"}]}, name="input[0].type"),
    "input[].id": harmless(
        _items({"role": "user", "content": "x", "id": "i"}),
        _A_NAME,
        _items({"role": "user", "content": "x"}),
    ),
    "input[].status": changes(
        _items(
            {
                "type": "function_call",
                "call_id": "c",
                "name": "f",
                "arguments": "{}",
                "status": "incomplete",
            }
        ),
        _items({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}),
    ),
    "input[].role": changes(
        {"input": [{"role": "system", "content": "x"}]},
        {"input": [{"role": "user", "content": "x"}]},
    ),
    "input[].content": changes(
        {"input": [{"role": "user", "content": "y"}]}, {"input": [{"role": "user", "content": "x"}]}
    ),
    "input[].content[input_text].text": changes(_asked("other"), _asked("hi")),
    "input[].content[output_text].text": changes(
        _said("output_text", "other"), _said("output_text")
    ),
    "input[].content[output_text].annotations": refused(
        _said("output_text", annotations=[1]),
        _said("output_text"),
        name="input[1].content[0].annotations",
        neutral=(_said("output_text", annotations=[]),),
    ),
    "input[].content[output_text].logprobs": harmless(
        _logprobs(), _READ_AS_TEXT, _said("output_text")
    ),
    "input[].content[output_text].logprobs[].top_logprobs": harmless(
        _top(), _READ_AS_TEXT, _logprobs()
    ),
    "input[].content[refusal].refusal": changes(_said("refusal", "no"), _said("refusal")),
    "input[].content[reasoning_text].text": changes(
        _thought(content=[{"type": "reasoning_text", "text": "r"}]),
        _thought(content=[{"type": "reasoning_text", "text": "s"}]),
    ),
    "input[].summary": changes(
        _thought(summary=[{"type": "summary_text", "text": "r"}]), _thought()
    ),
    "input[].summary[summary_text].text": changes(
        _thought(summary=[{"type": "summary_text", "text": "r"}]),
        _thought(summary=[{"type": "summary_text", "text": "s"}]),
    ),
    "input[].call_id": changes(_called({"call_id": "d"}, call_id="d"), _called()),
    "input[].name": changes(_called({"name": "g"}), _called()),
    "input[].arguments": changes(_called({"arguments": '{"a": 1}'}), _called()),
    "input[].output": changes(_called(output="2"), _called()),
    "input[].output[input_text].text": changes(
        _called(output=[{"type": "input_text", "text": "2"}]),
        _called(output=[{"type": "input_text", "text": "1"}]),
    ),
    **{
        f"input[].{name}": _null(name)
        for name in ("encrypted_content", "phase", "caller", "namespace")
    },
}
for _name, _value in (("token", "b"), ("logprob", -2.0), ("bytes", [98])):
    _where = "input[].content[output_text].logprobs[]"
    _INPUT[f"{_where}.{_name}"] = harmless(_logprobs(**{_name: _value}), _READ_AS_TEXT, _logprobs())
    _INPUT[f"{_where}.top_logprobs[].{_name}"] = harmless(
        _top(**{_name: _value}), _READ_AS_TEXT, _top()
    )

TABLE = Table(
    path="/v1/responses",
    body={"model": "fake", "input": "hello", "max_output_tokens": 8},
    serves=lambda: {"tool_call_parser": "hermes"},
    probes={
        **_INPUT,
        "model": refused({"model": "org/other"}, status=404),
        "instructions": changes({"instructions": "Be brief."}),
        "previous_response_id": refused({"previous_response_id": "resp_none"}, status=404),
        "max_output_tokens": changes({"max_output_tokens": 5}),
        "temperature": changes({"temperature": 0.25}),
        "top_p": changes({"top_p": 0.5}),
        "top_k": changes({"top_k": 7}),
        "min_p": changes({"min_p": 0.125}),
        "seed": changes({"seed": 3}),
        "stop": changes({"stop": "q"}),
        "repetition_penalty": changes({"repetition_penalty": 1.5}),
        "priority": changes({"priority": 1}),
        "cache_salt": changes({"cache_salt": "salt"}),
        "timeout": changes({"timeout": 30.0}),
        "chat_template_kwargs": changes({"chat_template_kwargs": {"enable_thinking": False}}),
        "tools": changes(_tools()),
        "tools[function].name": changes(_tools(name="g"), _tools()),
        "tools[function].parameters": changes(_tools(parameters={"type": "object"}), _tools()),
        "tools[function].strict": changes(_tools(strict=True), _tools()),
        "tools[function].description": changes(_tools(description="d"), _tools()),
        "tool_choice": changes({**_tools(), "tool_choice": "none"}, _tools()),
        "tool_choice[function].name": refused(
            {**_tools(), "tool_choice": {"type": "function", "name": "g"}},
            _tools(),
            name="tool_choice.name",
        ),
        "parallel_tool_calls": changes({**_tools(), "parallel_tool_calls": False}, _tools()),
        "max_tool_calls": changes({"max_tool_calls": 3}),
        "text": changes(_schema()),
        "text.format": changes({"text": {"format": {"type": "json_object"}}}),
        "text.format[json_schema].schema": changes(_schema(schema={"type": "object"}), _schema()),
        "text.format[json_schema].name": changes(_schema(name="y"), _schema()),
        "text.format[json_schema].strict": changes(_schema(strict=True), _schema()),
        "text.format[json_schema].description": changes(_schema(description="y"), _schema()),
        "text.verbosity": refused({"text": {"verbosity": "low"}}),
        "reasoning": refused({"reasoning": {"effort": "low"}}, name="reasoning.effort"),
        "reasoning.effort": refused({"reasoning": {"effort": "low"}}),
        "reasoning.summary": refused({"reasoning": {"summary": "detailed"}}),
        "truncation": changes({"truncation": "auto"}),
        "include": changes(_LOGPROBS),
        "top_logprobs": changes({**_LOGPROBS, "top_logprobs": 2}, _LOGPROBS),
        "stream": changes(_STREAM),
        "stream_options": refused({"stream_options": {}}),
        "stream_options.include_obfuscation": refused(
            {**_STREAM, "stream_options": {"include_obfuscation": True}}, _STREAM
        ),
        "store": changes({"store": False}),
        "background": changes({"background": True}),
        "metadata": changes({"metadata": {"a": "b"}}),
        "user": changes({"user": "u"}),
        "safety_identifier": changes({"safety_identifier": "s"}),
        "prompt_cache_key": changes({"prompt_cache_key": "k"}),
        "service_tier": harmless({"service_tier": "auto"}, "there is one tier"),
        "conversation": refused({"conversation": "conv_1"}),
        "context_management": refused({"context_management": [1]}),
        "moderation": refused({"moderation": {}}),
        "prompt": refused({"prompt": {"id": "p"}}),
        "prompt_cache_options": refused({"prompt_cache_options": {}}),
        "prompt_cache_retention": refused({"prompt_cache_retention": "24h"}),
    },
)
