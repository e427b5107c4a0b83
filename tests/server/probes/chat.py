"""The fields of `/v1/chat/completions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.server.probes import Table, changes, refused
from tests.server.probes.common import COMMON
from tests.server.probes.messages import MESSAGES, message_probes

if TYPE_CHECKING:
    from tests.server.conftest import RunningServer

_BEAMS = {"use_beam_search": True, "n": 2}
_TWO_CALLS = ['<tool_call>{"name": "f"}</tool_call>'] * 2


def _tools(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}]}


def _named(**fields: Any) -> dict[str, Any]:
    return {**_tools(), "tool_choice": {"type": "function", "function": {"name": "f"}, **fields}}


def _two_calls(server: RunningServer) -> None:
    server.engine.pieces = _TWO_CALLS


TABLE = Table(
    path="/v1/chat/completions",
    body={"model": "fake", "messages": MESSAGES, "max_tokens": 8},
    serves=lambda: {"tool_call_parser": "hermes"},
    prepare=_two_calls,
    probes={
        **COMMON,
        **message_probes({}),
        "messages": changes({"messages": [{"role": "user", "content": "other"}]}),
        "max_completion_tokens": changes(
            {"max_tokens": None, "max_completion_tokens": 5}, {"max_tokens": None}
        ),
        "add_special_tokens": changes({"add_special_tokens": True}),
        "logprobs": changes({"logprobs": True}),
        "top_logprobs": changes({"logprobs": True, "top_logprobs": 2}, {"logprobs": True}),
        "add_generation_prompt": changes({"add_generation_prompt": False}),
        "continue_final_message": changes({"continue_final_message": True}),
        "chat_template_kwargs": changes({"chat_template_kwargs": {"enable_thinking": False}}),
        "tools": changes(_tools(), neutral=({"tools": []},)),
        "tools[].type": refused(
            {"tools": [{"type": "x", "function": {"name": "f"}}]}, name="tools[0].type"
        ),
        "tools[].function": changes(_tools(name="g"), _tools()),
        "tools[].function.name": changes(_tools(name="g"), _tools()),
        "tools[].function.description": changes(_tools(description="d"), _tools()),
        "tools[].function.parameters": changes(_tools(parameters={"type": "object"}), _tools()),
        "tools[].function.strict": changes(
            _tools(strict=True), _tools(), neutral=(_tools(strict=False),)
        ),
        "tool_choice": changes({**_tools(), "tool_choice": "none"}, _tools()),
        "tool_choice.type": refused(_named(type="x"), _tools()),
        "tool_choice.function": changes(_named(), _tools()),
        "tool_choice.function.name": refused(_named(function={"name": "g"}), _tools()),
        "parallel_tool_calls": changes({**_tools(), "parallel_tool_calls": False}, _tools()),
        "best_of": changes({"n": 2, "best_of": 3}, {"n": 2}, neutral=({"n": 2, "best_of": 2},)),
        "use_beam_search": changes(_BEAMS, {"n": 2}, neutral=({"n": 2, "use_beam_search": False},)),
        "length_penalty": changes({**_BEAMS, "length_penalty": -3.0, "max_tokens": 64}, _BEAMS),
        "prompt_logprobs": changes({"prompt_logprobs": 1}),
        "truncate_prompt_tokens": changes({"truncate_prompt_tokens": 5}),
        "chat_template": refused({"chat_template": "{{ messages }}"}),
        "reasoning_effort": refused({"reasoning_effort": "low"}),
        "echo": refused({"echo": True}, neutral=({"echo": False},)),
        "functions": refused({"functions": [{"name": "f"}]}, neutral=({"functions": []},)),
        "function_call": refused(
            {"function_call": {"name": "f"}},
            neutral=({"function_call": "none"}, {"function_call": "auto"}),
        ),
        "modalities": refused({"modalities": ["audio"]}, neutral=({"modalities": ["text"]},)),
        "audio": refused({"audio": {"voice": "x"}}),
        "prediction": refused({"prediction": {"type": "content"}}),
        "verbosity": refused({"verbosity": "low"}),
        "web_search_options": refused({"web_search_options": {}}),
    },
)
