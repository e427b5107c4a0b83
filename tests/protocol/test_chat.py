from __future__ import annotations

from typing import Any

import msgspec
import pytest

from octavo.errors import InvalidRequestError
from octavo.protocol.chat import ChatCompletionRequest
from octavo.protocol.decode import decode
from octavo.protocol.messages import Message, check_final_message, template_messages

USER = {"role": "user", "content": "hi"}


def request(**fields: Any) -> ChatCompletionRequest:
    body = msgspec.json.encode({"model": "m", "messages": [USER], **fields})
    return decode(body, ChatCompletionRequest)


def messages(*values: dict[str, Any]) -> list[Message]:
    return msgspec.convert(list(values), list[Message])


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs must be in 0..20"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "max_completion_tokens must be"),
        ({"temperature": -1}, "temperature", "temperature must be"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens", "min_tokens (5)"),
    ],
)
def test_range_errors_use_the_names_of_this_api(
    fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request(**fields).sampling_params({})
    assert caught.value.param == param
    assert caught.value.message.startswith(message)


def test_logprobs() -> None:
    assert request().sampling_params({}).logprobs is None
    assert request(logprobs=False).sampling_params({}).logprobs is None
    assert request(logprobs=True).sampling_params({}).logprobs == 0
    assert request(logprobs=True, top_logprobs=4).sampling_params({}).logprobs == 4


def test_bounds() -> None:
    assert request().sampling_params({}).max_tokens is None
    assert request(max_tokens=3).sampling_params({}).max_tokens == 3
    both = request(max_tokens=3, max_completion_tokens=3)
    both.check()
    assert both.sampling_params({}).max_tokens == 3


def test_openai_defaults() -> None:
    params = request().sampling_params({})
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)


def test_answers_may_be_sent_back() -> None:
    """An earlier answer, with all the empty fields that the official client dumps, is accepted."""
    from openai.types.chat import ChatCompletionMessage

    answer = ChatCompletionMessage(role="assistant", content="hello")
    (message,) = template_messages(messages(answer.model_dump()))
    assert message == {"role": "assistant", "content": "hello"}


def test_answers_with_calls_and_reasoning_may_be_sent_back() -> None:
    from openai.types.chat import ChatCompletionMessage

    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    answer = ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "Hm."}
    )
    (message,) = template_messages(messages(answer.model_dump()))
    call["function"] = {"name": "f", "arguments": {"a": 1}}
    assert message == {
        "role": "assistant",
        "content": "",
        "tool_calls": [call],
        "reasoning_content": "Hm.",
    }


def test_both_names_of_reasoning() -> None:
    base = {"role": "assistant", "content": "x"}
    for fields in ({"reasoning": "a"}, {"reasoning_content": "a"}):
        for both in (fields, {"reasoning": "a", "reasoning_content": "a"}):
            (message,) = template_messages(messages({**base, **both}))
            assert message["reasoning_content"] == "a"
    with pytest.raises(InvalidRequestError) as caught:
        template_messages(messages({**base, "reasoning": "a", "reasoning_content": "b"}))
    assert caught.value.param == "messages[0].reasoning_content"


def test_offered_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f", "strict": False}}]
    for choice, num in ((None, 1), ("auto", 1), ("none", 0)):
        body = request(tools=tools, tool_choice=choice)
        body.check()
        assert len(body.offered_tools) == num
    assert request(tools=[]).offered_tools == []


def test_empty_content_is_content() -> None:
    empty = messages({"role": "user", "content": ""}, {"role": "assistant", "content": ""})
    assert [message["content"] for message in template_messages(empty)] == ["", ""]


@pytest.mark.parametrize(
    ("add", "continues", "expected"),
    [
        (None, None, (True, False)),
        (False, None, (False, False)),
        (None, True, (False, True)),
        (False, True, (False, True)),
        (True, False, (True, False)),
    ],
)
def test_how_a_prompt_ends(
    add: bool | None, continues: bool | None, expected: tuple[bool, bool]
) -> None:
    assert (
        check_final_message(add_generation_prompt=add, continue_final_message=continues) == expected
    )
