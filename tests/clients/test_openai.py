"""OpenAI's own client, synchronous and asynchronous."""

from __future__ import annotations

import base64
import json
import math
from array import array
from typing import TYPE_CHECKING, Any

import openai
import pytest
from pydantic import BaseModel, Field

from tests.clients.conftest import USER, WEATHER, cosine
from tests.clients.shapes import ADA, INVENT, Person, is_ada

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.conftest import Scripted, Served

pytestmark = [pytest.mark.model]

FOX: list[Any] = [{"role": "user", "content": "What is a fox? One sentence."}]


class GetWeather(BaseModel):
    """The weather in a city."""

    city: str = Field(max_length=20)


@pytest.fixture
def client(octavo: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=octavo.v1, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def scripted_client(scripted: Scripted) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=scripted.v1, api_key="unused", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == "smollm2"
    assert client.models.retrieve("smollm2") == model


def test_chat_and_stream(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "smollm2",
        "messages": FOX,
        "temperature": 0,
        "max_completion_tokens": 24,
    }
    whole = client.chat.completions.create(**asked)
    assert "fox" in (whole.choices[0].message.content or "")
    assert whole.usage is not None
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(texts) > 5
    assert "".join(texts) == whole.choices[0].message.content
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert final.usage is not None
    assert final.usage.completion_tokens == whole.usage.completion_tokens


async def test_async_chat_and_stream(octavo: Served) -> None:
    async with openai.AsyncOpenAI(base_url=octavo.v1, api_key="unused") as client:
        asked: dict[str, Any] = {
            "model": octavo.model,
            "messages": FOX,
            "temperature": 0,
            "max_tokens": 6,
        }
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


def test_tools_there_and_back(scripted: Scripted, scripted_client: openai.OpenAI) -> None:
    scripted.says(scripted.engine.texts[0], "It is sunny.")
    asked: dict[str, Any] = {"model": scripted.model, "tools": [WEATHER]}
    first = scripted_client.chat.completions.create(messages=[USER], **asked).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Oslo"},
    )
    result: dict[str, Any] = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    second = scripted_client.chat.completions.create(
        messages=[USER, first.message, result],  # type: ignore[list-item]
        **asked,
    ).choices[0]
    assert (second.finish_reason, second.message.content) == ("stop", "It is sunny.")


def test_tools_streamed(scripted: Scripted, scripted_client: openai.OpenAI) -> None:
    with scripted_client.chat.completions.stream(
        model=scripted.model, messages=[USER], tools=[WEATHER], n=2
    ) as stream:
        events = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [json.loads(event.arguments) for event in events] == [{"city": "Oslo"}] * 2
    assert [choice.finish_reason for choice in final.choices] == ["tool_calls"] * 2


def test_a_forced_tool(client: openai.OpenAI) -> None:
    message = (
        client.chat.completions.create(
            model="smollm2",
            messages=[USER],  # type: ignore[list-item]
            tools=[WEATHER],  # type: ignore[list-item]
            tool_choice={"type": "function", "function": {"name": "get_weather"}},
            temperature=0,
            max_tokens=64,
        )
        .choices[0]
        .message
    )
    (call,) = message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_parsed_tools(client: openai.OpenAI) -> None:
    message = (
        client.chat.completions.parse(
            model="smollm2",
            messages=[USER],  # type: ignore[list-item]
            tools=[openai.pydantic_function_tool(GetWeather)],
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
            max_tokens=64,
        )
        .choices[0]
        .message
    )
    (call,) = message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)


def test_parsed_answers(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "smollm2",
        "messages": INVENT,
        "response_format": Person,
        "temperature": 0,
        "max_tokens": 64,
    }
    answer = client.chat.completions.parse(**asked).choices[0].message.parsed
    assert isinstance(answer, Person)
    with client.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == answer


async def test_async_parsed_answers(scripted: Scripted) -> None:
    scripted.says(ADA)
    async with openai.AsyncOpenAI(base_url=scripted.v1, api_key="unused") as client:
        answer = await client.chat.completions.parse(
            model=scripted.model, messages=INVENT, response_format=Person
        )
    assert is_ada(answer.choices[0].message.parsed)
    assert scripted.is_bound


def test_a_cut_answer_cannot_be_parsed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="smollm2", messages=FOX, response_format=Person, max_tokens=2
        )


def test_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "The capital of France, as JSON."}],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=16,
        stop=["}"],
        extra_body={"include_stop_str_in_output": True},
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


def test_completions_with_logprobs(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "smollm2",
        "prompt": "The capital of France is",
        "temperature": 0,
        "logprobs": 2,
    }
    choice = client.completions.create(**asked, max_tokens=4).choices[0]
    assert "Paris" in choice.text
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or []) == choice.text
    assert all(value <= 0 for value in choice.logprobs.token_logprobs or [])
    echoed = client.completions.create(**asked, max_tokens=0, echo=True).choices[0]
    assert echoed.text == asked["prompt"]
    assert echoed.logprobs is not None
    first, *others = echoed.logprobs.token_logprobs or []
    assert first is None
    assert len(others) == len(echoed.logprobs.text_offset or []) - 1
    assert all(math.isfinite(value) and value <= 0 for value in others)


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-5", messages=FOX)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="smollm2", messages=FOX, max_tokens=10**6)
    assert caught.value.param == "max_tokens"


SENTENCES = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Shares fell sharply."]


@pytest.mark.parametrize("encoding_format", [None, "float", "base64"])
def test_embeddings(embedder: Served, encoding_format: Any) -> None:
    """Asked for nothing, the client asks for base64 and decodes it."""
    extra = {} if encoding_format is None else {"encoding_format": encoding_format}
    with openai.OpenAI(base_url=embedder.v1, api_key="unused", max_retries=0) as client:
        answer = client.embeddings.create(model=embedder.model, input=SENTENCES, **extra)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens > 10
    vectors: list[Any] = [item.embedding for item in answer.data]
    if encoding_format == "base64":
        vectors = [array("f", base64.b64decode(vector)) for vector in vectors]
    cat, kitten, shares = vectors
    assert cosine(cat, kitten) > 0.5 > 0.2 > cosine(cat, shares)


async def test_async_embeddings(embedder: Served) -> None:
    async with openai.AsyncOpenAI(base_url=embedder.v1, api_key="unused") as client:
        answer = await client.embeddings.create(model=embedder.model, input="A cat.")
    assert len(answer.data[0].embedding) == 384
