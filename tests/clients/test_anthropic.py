"""Anthropic's own client, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from tests.clients.conftest import CALL
from tests.server.conftest import running_servers
from tests.server.fake_engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anthropic.types import Message, MessageParam, ToolParam

    from tests.clients.conftest import Scripted, Served
    from tests.server.conftest import RunningServer

FOX: list[MessageParam] = [{"role": "user", "content": "What is a fox? One sentence."}]
GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}  # the client has no field for it
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
THOUGHTS = "<think>\nI had better look.\n</think>\n\n"


@pytest.fixture
def client(octavo: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=octavo.url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def scripted_client(scripted: Scripted) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=scripted.url, api_key="unused", max_retries=0) as client:
        yield client


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.mark.model
def test_messages(client: anthropic.Anthropic, octavo: Served) -> None:
    asked: dict[str, Any] = {"model": octavo.model, "max_tokens": 24, "messages": FOX}
    asked |= {"system": "You are a zoologist.", **GREEDY}
    message = client.messages.create(**asked)
    assert message._request_id
    assert message.type == "message"
    assert message.role == "assistant"
    assert message.model == octavo.model
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert "fox" in text_of(message).lower()
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == text_of(message)
        final = stream.get_final_message()
    assert text_of(final) == text_of(message)
    assert final.stop_reason == message.stop_reason
    assert final.usage.output_tokens == message.usage.output_tokens


@pytest.mark.model
def test_counted_tokens_are_those_of_the_prompt(
    client: anthropic.Anthropic, octavo: Served
) -> None:
    for fields in ({}, {"system": "Be brief."}, {"tools": [WEATHER]}):
        asked: dict[str, Any] = {"model": octavo.model, "messages": FOX, **fields}
        count = client.messages.count_tokens(**asked)
        usage = client.messages.create(**asked, max_tokens=1).usage
        assert usage.cache_creation_input_tokens == 0
        cached = usage.cache_read_input_tokens or 0
        assert count.input_tokens == usage.input_tokens + cached


@pytest.mark.model
def test_prefill_and_stop_sequences(client: anthropic.Anthropic, octavo: Served) -> None:
    messages: list[MessageParam] = [
        {"role": "user", "content": "Count from one to nine in digits, parted by commas."},
        {"role": "assistant", "content": "1, 2, 3, 4,"},
    ]
    message = client.messages.create(
        model=octavo.model,
        max_tokens=30,
        messages=messages,
        **GREEDY,
        stop_sequences=["7", "zebra"],
    )
    assert text_of(message).strip() == "5, 6,"
    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence == "7"


@pytest.mark.model
def test_an_answer_as_long_as_there_is_room(client: anthropic.Anthropic, octavo: Served) -> None:
    """Agents ask for more tokens than a small model's context has."""
    message = client.messages.create(model=octavo.model, max_tokens=20_000, messages=FOX, **GREEDY)
    assert message.stop_reason == "end_turn"


@pytest.mark.model
def test_at_the_same_time(octavo: Served) -> None:
    async def ask(client: anthropic.AsyncAnthropic, number: int) -> str:
        asked: dict[str, Any] = {
            "model": octavo.model,
            "max_tokens": 12,
            **GREEDY,
            "messages": [{"role": "user", "content": f"Say the number {number}."}],
        }
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            pieces = [text async for text in stream.text_stream]
        assert "".join(pieces) == text_of(whole)
        return text_of(whole)

    async def ask_all() -> list[str]:
        async with anthropic.AsyncAnthropic(
            base_url=octavo.url, api_key="unused", max_retries=0
        ) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(4)))

    answers = asyncio.run(ask_all())
    assert len(answers) == 4
    assert all(answers)


def test_tools(scripted: Scripted, scripted_client: anthropic.Anthropic) -> None:
    """A call, its result, and the answer to it: the loop of every agent."""
    scripted.says("One moment.\n" + CALL, "It is cold in Oslo.")
    messages: list[MessageParam] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    asked: dict[str, Any] = {"model": scripted.model, "max_tokens": 99, "tools": [WEATHER]}
    message = scripted_client.messages.create(**asked, messages=messages)
    assert message.stop_reason == "tool_use"
    text, call = message.content
    assert text.type == "text"
    assert text.text == "One moment."
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("get_weather", {"city": "Oslo"})
    messages += [
        {"role": "assistant", "content": message.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "3 °C"}],
        },
    ]
    answer = scripted_client.messages.create(**asked, messages=messages)
    assert text_of(answer) == "It is cold in Oslo."
    assert answer.stop_reason == "end_turn"


def test_streamed_tools(scripted: Scripted, scripted_client: anthropic.Anthropic) -> None:
    scripted.says("One moment.\n" + CALL)
    asked: dict[str, Any] = {
        "model": scripted.model,
        "max_tokens": 99,
        "tools": [WEATHER],
        "messages": FOX,
    }
    partial = ""
    with scripted_client.messages.stream(**asked) as stream:
        for event in stream:
            if event.type == "input_json":
                partial += event.partial_json
        message = stream.get_final_message()
    assert json.loads(partial) == {"city": "Oslo"}
    assert [block.type for block in message.content] == ["text", "tool_use"]
    call = message.content[1]
    assert call.type == "tool_use"
    assert call.input == {"city": "Oslo"}
    assert message.stop_reason == "tool_use"
    assert "".join(event.type for event in scripted_client.messages.create(**asked, stream=True))


def test_the_clients_own_loop_of_tools(
    scripted: Scripted, scripted_client: anthropic.Anthropic
) -> None:
    asked_for = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather in a city.

        Args:
            city: its name.
        """
        asked_for.append(city)
        return "3 °C"

    scripted.says(CALL, "It is cold in Oslo.")
    runner = scripted_client.beta.messages.tool_runner(
        model=scripted.model, max_tokens=99, tools=[get_weather], messages=FOX
    )
    message = runner.until_done()
    assert asked_for == ["Oslo"]
    assert message.content[0].type == "text"
    assert message.content[0].text == "It is cold in Oslo."


@pytest.fixture(scope="module")
def thinking() -> Iterator[RunningServer]:
    with running_servers() as start:
        yield start(
            engine=FakeEngine(),
            tool_call_parser="hermes",
            reasoning_parser="qwen3",
            api_keys=("k",),
        )


@pytest.fixture
def thinking_client(thinking: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=thinking.url, api_key="k", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("size", [1, 6, 99])
def test_thinking(thinking: RunningServer, thinking_client: anthropic.Anthropic, size: int) -> None:
    text = THOUGHTS + "It is cold.\n" + CALL
    thinking.engine.pieces = [text[i : i + size] for i in range(0, len(text), size)]
    asked: dict[str, Any] = {
        "model": "fake",
        "max_tokens": 2048,
        "messages": FOX,
        "tools": [WEATHER],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    message = thinking_client.messages.create(**asked)
    with thinking_client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for one in (message, streamed):
        thought, said, call = one.content
        assert thought.type == "thinking"
        assert thought.thinking == "I had better look."
        assert thought.signature
        assert said.type == "text"
        assert said.text == "It is cold."
        assert call.type == "tool_use"
        assert call.input == {"city": "Oslo"}
    assert message.content[0] == streamed.content[0]
    assert streamed.usage == message.usage
    # The whole answer goes back as it came.
    messages = [*FOX, {"role": "assistant", "content": streamed.content}, *FOX]
    thinking.tokenizer.chat_template.calls.clear()
    thinking_client.messages.create(**{**asked, "messages": messages})
    (seen,) = thinking.tokenizer.chat_template.calls
    assert seen["messages"][1]["reasoning_content"] == "I had better look."


def test_errors(thinking: RunningServer, thinking_client: anthropic.Anthropic) -> None:
    thinking.engine.pieces = None
    asked: dict[str, Any] = {"model": "fake", "max_tokens": 30, "messages": FOX}

    def error(kind: type[anthropic.APIStatusError], **fields: Any) -> str:
        with pytest.raises(kind) as caught:
            thinking_client.messages.create(**{**asked, **fields})
        body: Any = caught.value.body
        assert body["request_id"] == caught.value.request_id
        return f"{body['error']['type']}: {body['error']['message']}"

    assert error(anthropic.NotFoundError, model="claude").startswith("not_found_error: The model")
    assert "max_tokens" in error(anthropic.BadRequestError, max_tokens=0)
    image = {"type": "image", "source": {"type": "url", "url": "http://x"}}
    messages = [{"role": "user", "content": [image]}]
    assert "'image'" in error(anthropic.BadRequestError, messages=messages)
    search = {"type": "web_search_20250305", "name": "web_search"}
    assert "web_search_20250305" in error(anthropic.BadRequestError, tools=[search])
    with pytest.raises(anthropic.AuthenticationError):
        thinking_client.with_options(api_key="wrong").messages.create(**asked)
    thinking.engine.fail_at = 5
    with pytest.raises(anthropic.InternalServerError):
        thinking_client.messages.create(**asked)
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(thinking_client.messages.create(**asked, stream=True))
    assert "api_error" in str(caught.value)
    thinking.engine.is_alive = False
    assert error(anthropic.InternalServerError).startswith("overloaded_error")
    thinking.engine.fail_at, thinking.engine.is_alive = None, True
