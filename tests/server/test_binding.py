"""What answers are bound to: forced calls, and structures behind a model's reasoning."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.fake_engine import FakeTokenizer
from tests.server.test_tools import TIME, USER, WEATHER, ask, ask_streaming, calls_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.types import SamplingParams, StructuredOutputs
    from tests.server.conftest import RunningServer

NAMED = {"type": "function", "function": {"name": "get_time"}}
JSON_OBJECT: dict[str, Any] = {"response_format": {"type": "json_object"}}


class ThinkingTokenizer(FakeTokenizer):
    """Reads the think tags as tokens; they take the place of two bytes that no text has."""

    tags = ("<think>", "</think>")
    ids = (0xFE + 3, 0xFF + 3)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        if text in self.tags:
            return [self.ids[self.tags.index(text)]]
        return super().encode(text, add_special_tokens=add_special_tokens)


def bound_of(server: RunningServer) -> StructuredOutputs | None:
    params: Sequence[SamplingParams] = [params for _, params in server.engine.requests.values()]
    return params[-1].structured_outputs


@pytest.mark.parametrize("how", [ask, ask_streaming])
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_forced_calls(
    serve: Callable[..., RunningServer], how: Callable[..., Any], choice: Any
) -> None:
    server = serve(tool_call_parser="hermes")
    server.engine.pieces = ['<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>']
    answer = how(server, tools=[WEATHER, TIME], tool_choice=choice)
    assert calls_of(answer.choices[0].message) == [("get_time", {})]
    assert answer.choices[0].finish_reason == "tool_calls"
    bound = bound_of(server)
    assert bound is not None
    assert bound.grammar is not None
    assert "get_time" in bound.grammar
    assert ("get_weather" in bound.grammar) == (choice == "required")


def test_calls_are_not_forced_by_auto_or_none(serve: Callable[..., RunningServer]) -> None:
    server = serve(tool_call_parser="hermes")
    for choice in ("auto", "none", None):
        assert server.chat(tools=[WEATHER], tool_choice=choice).status_code == 200
        assert bound_of(server) is None


def test_one_call_where_they_must_not_be_parallel(serve: Callable[..., RunningServer]) -> None:
    server = serve(tool_call_parser="hermes")
    grammars = []
    for parallel in (True, False):
        fields = {"tools": [TIME], "tool_choice": "required", "parallel_tool_calls": parallel}
        assert server.chat(**fields).status_code == 200
        bound = bound_of(server)
        assert bound is not None
        grammars.append(bound.grammar)
    assert grammars[0] != grammars[1]


def test_strict_tools_and_structures_leave_calls_free(
    serve: Callable[..., RunningServer],
) -> None:
    server = serve(tool_call_parser="hermes")
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    for fields in ({"tools": [strict]}, {"tools": [WEATHER], **JSON_OBJECT}):
        assert server.chat(**fields).status_code == 200
        bound = bound_of(server)
        assert bound is not None
        assert bound.grammar is not None
        assert "get_weather" in bound.grammar
        assert server.chat(**fields, tool_choice="none").status_code == 200
        bound = bound_of(server)
        assert bound is None or bound.json_object


def test_a_model_whose_calls_are_not_known_can_be_forced(
    serve: Callable[..., RunningServer],
) -> None:
    server = serve()
    server.engine.pieces = ['<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>']
    response = server.chat(tools=[TIME], tool_choice="required")
    message = response.json()["choices"][0]["message"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {}
    assert server.chat(tools=[TIME]).status_code == 400


def test_the_structure_begins_behind_the_reasoning(serve: Callable[..., RunningServer]) -> None:
    start, end = ThinkingTokenizer.ids
    server = serve(tokenizer=ThinkingTokenizer(), reasoning_parser="qwen3")
    assert server.chat(**JSON_OBJECT).status_code == 200
    bound = bound_of(server)
    assert bound is not None
    assert bound.json_object
    assert bound.reasoning_start_token_ids == (start,)
    assert bound.reasoning_end_token_ids == (end,)
    # The prompt may have opened it, or closed it.
    for tail, starts, ends in (("<think>", (), (end,)), ("<think>\n\n</think>\n\n", (), ())):
        messages = [USER, {"role": "assistant", "content": tail}]
        fields = {"messages": messages, "continue_final_message": True, **JSON_OBJECT}
        assert server.chat(**fields).status_code == 200
        bound = bound_of(server)
        assert bound is not None
        assert (bound.reasoning_start_token_ids, bound.reasoning_end_token_ids) == (starts, ends)


def test_without_tokens_for_it_there_is_no_reasoning(serve: Callable[..., RunningServer]) -> None:
    server = serve(reasoning_parser="qwen3")
    assert server.chat(**JSON_OBJECT).status_code == 200
    bound = bound_of(server)
    assert bound is not None
    assert not bound.reasoning_end_token_ids


def test_harmony_is_not_bound_but_by_calls(serve: Callable[..., RunningServer]) -> None:
    server = serve(tool_call_parser="gpt_oss")
    response = server.chat(**JSON_OBJECT)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"
    assert server.chat(tools=[TIME], tool_choice="required", **JSON_OBJECT).status_code == 200
    assert bound_of(server) is not None


def test_errors_name_the_field_that_the_caller_used(serve: Callable[..., RunningServer]) -> None:
    class Refusing:
        async def check_beside(self, spec: StructuredOutputs) -> None:
            from octavo.errors import InvalidRequestError

            raise InvalidRequestError("structured_outputs: no", param="structured_outputs")

    server = serve(tool_call_parser="hermes", grammars=Refusing())
    for fields, param in (
        (JSON_OBJECT, "response_format"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [TIME], "tool_choice": "required"}, "tools"),
    ):
        error = server.chat(**fields).json()["error"]
        assert error["param"] == param
        assert error["message"] == f"{param}: no"
    assert server.completion(guided_regex="a").json()["error"]["param"] == "guided_regex"
    assert not server.engine.requests
