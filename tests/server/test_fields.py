"""A walk over every field of the requests: each has an effect, or is harmless, or gets a 400."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from octavo.protocol.chat import NEUTRAL_CHAT_VALUES, ChatCompletionRequest
from octavo.protocol.completions import NEUTRAL_COMPLETION_VALUES, CompletionRequest
from octavo.protocol.generation import HARMLESS_FIELDS

if TYPE_CHECKING:
    from tests.server.conftest import RunningServer

TOOLS = [{"type": "function", "function": {"name": "f"}}]
TWO_CALLS = ['<tool_call>{"name": "f"}</tool_call>'] * 2

# Per field: a value that asks for something, and fields that it needs beside it.
COMMON: dict[str, Any] = {
    "model": "org/other",
    "temperature": 0.25,
    "top_p": 0.5,
    "top_k": 7,
    "min_p": 0.125,
    "seed": 3,
    "max_tokens": 5,
    "min_tokens": 2,
    "stop": "q",
    "stop_token_ids": [120],
    "ignore_eos": True,
    "skip_special_tokens": False,
    "stream": True,
    "stream_options": ({"include_usage": True}, {"stream": True}),
    "return_token_ids": True,
    "metadata": {"a": "b"},
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "service_tier": "default",
    "user": "u",
    "n": 2,
    "best_of": 2,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
    "repetition_penalty": 1.5,
    "length_penalty": 2.0,
    "logit_bias": {"5": 1},
    "use_beam_search": True,
    "include_stop_str_in_output": True,
    "spaces_between_special_tokens": False,
    "prompt_logprobs": 1,
    "truncate_prompt_tokens": 5,
    "echo": True,
    "priority": 1,
    "cache_salt": "salt",
    "timeout": 30.0,
    "store": True,
    "response_format": {"type": "json_object"},
}
COMPLETION = {
    **COMMON,
    "prompt": "other",
    "add_special_tokens": False,
    "logprobs": 2,
    "suffix": "s",
}
CHAT = {
    **COMMON,
    "messages": [{"role": "user", "content": "other"}],
    "add_special_tokens": True,
    "max_completion_tokens": (5, {"max_tokens": None}),
    "logprobs": True,
    "top_logprobs": (2, {"logprobs": True}),
    "add_generation_prompt": False,
    "continue_final_message": True,
    "chat_template_kwargs": {"enable_thinking": False},
    "tools": TOOLS,
    "tool_choice": ("none", {"tools": TOOLS}),
    "parallel_tool_calls": (False, {"tools": TOOLS}),
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "modalities": ["audio"],
    "audio": {"voice": "x"},
    "prediction": {"type": "content"},
    "reasoning_effort": "low",
    "verbosity": "low",
    "web_search_options": {},
}


def effect(server: RunningServer, kind: str, fields: dict[str, Any]) -> tuple[int, Any]:
    """The status, and what the request did: to the engine, to the template, in the answer."""
    server.engine.requests.clear()
    server.tokenizer.chat_template.calls.clear()
    response = getattr(server, kind)(**fields)
    if response.status_code >= 400:
        return response.status_code, response.json()["error"]["param"]
    asked = [
        (msgspec.to_builtins(job), server.engine.options[request_id])
        for request_id, job in server.engine.requests.items()
    ]
    if response.headers["content-type"].startswith("text/event-stream"):
        return 200, (asked, response.text.count("data:"))
    answer = response.json()
    for choice in answer["choices"]:
        for call in choice.get("message", {}).get("tool_calls", ()):
            assert call.pop("id")  # drawn anew for each
    return 200, (
        asked,
        list(server.tokenizer.chat_template.calls),
        answer["choices"],
        sorted(answer),
    )


@pytest.mark.parametrize(
    ("kind", "struct", "probes", "neutral"),
    [
        ("completion", CompletionRequest, COMPLETION, NEUTRAL_COMPLETION_VALUES),
        ("chat", ChatCompletionRequest, CHAT, NEUTRAL_CHAT_VALUES),
    ],
)
def test_every_field(
    serve: Any,
    kind: str,
    struct: type[msgspec.Struct],
    probes: dict[str, Any],
    neutral: dict[str, Any],
) -> None:
    names = {field.encode_name for field in msgspec.structs.fields(struct)}
    assert names == set(probes), "every field needs a probe"
    server = serve(tool_call_parser="hermes")
    if kind == "chat":
        server.engine.pieces = TWO_CALLS
    for name, probe in probes.items():
        value, beside = probe if isinstance(probe, tuple) else (probe, {})
        baseline = effect(server, kind, beside)
        assert baseline[0] == 200
        status, result = effect(server, kind, {**beside, name: value})
        if name in HARMLESS_FIELDS:
            assert (status, result) == baseline, name
        elif name in neutral:
            assert (status, result) == (400, name)
            for quiet in neutral[name]:
                assert effect(server, kind, {**beside, name: quiet}) == baseline, name
        elif name == "best_of":
            assert (status, result) == (400, name)
            assert effect(server, kind, {"n": 2, name: 2}) == effect(server, kind, {"n": 2})
        elif name == "model":
            assert (status, result) == (404, "model")
        else:
            assert status == 200, (name, result)
            assert result != baseline[1], f"{name} is accepted and does nothing"


def test_null_is_the_same_as_absent(server: RunningServer) -> None:
    required = {"model", "messages", "prompt"}
    for kind, probes in (("completion", COMPLETION), ("chat", CHAT)):
        baseline = effect(server, kind, {})
        for name in probes.keys() - required - {"max_tokens"}:
            assert effect(server, kind, {name: None}) == baseline, name


def test_sampling_values_reach_the_engine_as_given(server: RunningServer) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.125,
        "seed": -(2**63),
        "max_tokens": 9,
        "min_tokens": 2,
        "stop": ["zz", "yy"],
        "stop_token_ids": [1],
        "ignore_eos": True,
        "skip_special_tokens": False,
    }
    assert server.completion(**fields, logprobs=3).status_code == 200
    assert server.chat(**fields, logprobs=True, top_logprobs=3).status_code == 200
    assert len(server.engine.requests) == 2
    for _, params in server.engine.requests.values():
        assert params.logprobs == 3
        for name, value in fields.items():
            got = getattr(params, name)
            assert (list(got) if isinstance(got, tuple) else got) == value


def test_defaults_of_the_model(serve: Any) -> None:
    server = serve(
        defaults={"temperature": 0.6, "top_k": 64, "top_p": 0.95, "do_sample": True, "min_p": None}
    )
    server.chat()
    server.completion(temperature=0, top_p=1)
    (_, chat), (_, completion) = server.engine.requests.values()
    assert (chat.temperature, chat.top_k, chat.top_p, chat.min_p) == (0.6, 64, 0.95, 0.0)
    assert (completion.temperature, completion.top_k, completion.top_p) == (0, 64, 1)
