"""Hugging Face's InferenceClient, with a server's address in the place of a model's name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.conftest import USER, WEATHER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from huggingface_hub import InferenceClient

    from tests.clients.conftest import Scripted, Served

pytestmark = [pytest.mark.model]

FOX: list[Any] = [{"role": "user", "content": "What is a fox? One sentence."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture
def client_of() -> Iterator[Callable[[Served], InferenceClient]]:
    from huggingface_hub import InferenceClient, close_session

    yield lambda served: InferenceClient(base_url=served.v1, api_key="unused")
    close_session()


def test_chat_and_stream(octavo: Served, client_of: Callable[[Served], InferenceClient]) -> None:
    client = client_of(octavo)
    asked: dict[str, Any] = {"messages": FOX, "temperature": 0.0, "max_tokens": 6}
    asked["model"] = octavo.model
    whole = client.chat_completion(**asked)
    text = whole.choices[0].message.content
    assert text
    assert whole.usage.completion_tokens > 0
    chunks = list(
        client.chat_completion(**asked, stream=True, stream_options={"include_usage": True})
    )
    *parts, last = chunks
    assert "".join(part.choices[0].delta.content or "" for part in parts) == text
    assert last.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    # The same under OpenAI's name of it.
    again = client.chat.completions.create(**asked)
    assert again.choices[0].message.content == text


def test_logprobs(octavo: Served, client_of: Callable[[Served], InferenceClient]) -> None:
    answer = client_of(octavo).chat_completion(
        FOX, model=octavo.model, max_tokens=3, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert [len(position.top_logprobs) for position in logprobs.content] == [2, 2, 2]


async def test_async_chat(octavo: Served) -> None:
    from huggingface_hub import AsyncInferenceClient

    async with AsyncInferenceClient(base_url=octavo.v1, api_key="unused") as client:
        stream = await client.chat_completion(FOX, model=octavo.model, max_tokens=4, stream=True)
        texts = [chunk.choices[0].delta.content async for chunk in stream]
    assert "".join(text or "" for text in texts)


def test_tools(scripted: Scripted, client_of: Callable[[Served], InferenceClient]) -> None:
    asked: dict[str, Any] = {"model": scripted.model, "messages": [USER], "tools": [WEATHER]}
    client = client_of(scripted)
    choice = client.chat_completion(**asked, tool_choice="auto").choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    deltas = [
        delta
        for chunk in client.chat_completion(**asked, stream=True)
        for delta in chunk.choices[0].delta.tool_calls or []
    ]
    assert deltas[0].function.name == "get_weather"
    text = "".join(delta.function.arguments for delta in deltas)
    assert json.loads(text) == {"city": "Oslo"}


@pytest.mark.parametrize("choice", ["required", {"function": {"name": "get_weather"}}])
def test_forced_tools(
    scripted: Scripted, client_of: Callable[[Served], InferenceClient], choice: Any
) -> None:
    answer = client_of(scripted).chat_completion(
        [USER], model=scripted.model, tools=[WEATHER], tool_choice=choice
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.name == "get_weather"
    assert scripted.is_bound


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}},
        {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}},
    ],
)
def test_response_format(
    octavo: Served, client_of: Callable[[Served], InferenceClient], response_format: Any
) -> None:
    answer = client_of(octavo).chat_completion(
        FOX, model=octavo.model, response_format=response_format, temperature=0.0, max_tokens=48
    )
    assert list(json.loads(answer.choices[0].message.content or "")) == ["city"]


def test_other_tasks_are_no_part_of_the_api(
    scripted: Scripted, client_of: Callable[[Served], InferenceClient]
) -> None:
    """They go to the address itself, in the bodies of Hugging Face's own servers."""
    from huggingface_hub.errors import HfHubHTTPError

    client = client_of(scripted)
    for ask in (client.text_generation, client.feature_extraction):
        with pytest.raises(HfHubHTTPError, match=f"404 Not Found' for url '{scripted.v1}'"):
            ask("Hello")
