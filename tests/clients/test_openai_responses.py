"""OpenAI's own client: responses, files and batches of a real model."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pydantic
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.conftest import Served

QUESTION = "What is the capital of France?"


class City(pydantic.BaseModel):
    """A city."""

    name: str = pydantic.Field(max_length=20)
    country: str = pydantic.Field(max_length=20)


WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": False,
}


@pytest.fixture(scope="module")
def client(octavo: Served) -> Iterator[openai.OpenAI]:
    with (
        httpx.Client(trust_env=False) as http,
        openai.OpenAI(base_url=octavo.v1, api_key="none", http_client=http) as client,
    ):
        yield client


def test_a_response_is_what_a_chat_is(client: openai.OpenAI, octavo: Served) -> None:
    asked: dict[str, Any] = {"model": octavo.model, "temperature": 0}
    chat = client.chat.completions.create(
        messages=[{"role": "user", "content": QUESTION}], max_tokens=24, **asked
    )
    asked |= {"input": QUESTION, "max_output_tokens": 24}
    response = client.responses.create(**asked)
    assert response.output_text == chat.choices[0].message.content
    assert chat.usage is not None
    assert response.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens
    *_, last = client.responses.create(**asked, stream=True)
    assert last.type == f"response.{response.status}"
    assert last.response.output_text == response.output_text


def test_a_conversation_goes_on(client: openai.OpenAI, octavo: Served) -> None:
    first = client.responses.create(
        model=octavo.model, input=QUESTION, max_output_tokens=24, temperature=0
    )
    second = client.responses.create(
        model=octavo.model,
        input="And of Italy?",
        previous_response_id=first.id,
        max_output_tokens=12,
        temperature=0,
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    by_hand: list[Any] = [
        {"role": "user", "content": QUESTION},
        *[item.model_dump(exclude_none=True) for item in first.output],
        {"role": "user", "content": "And of Italy?"},
    ]
    same = client.responses.create(
        model=octavo.model, input=by_hand, max_output_tokens=12, temperature=0
    )
    assert same.output_text == second.output_text


def test_structures(client: openai.OpenAI, octavo: Served) -> None:
    parsed = client.responses.parse(
        model=octavo.model, input="Tell of Paris.", text_format=City, temperature=0
    )
    assert isinstance(parsed.output_parsed, City)


def test_a_forced_call(client: openai.OpenAI, octavo: Served) -> None:
    response = client.responses.create(
        model=octavo.model,
        input="What is the weather in Oslo?",
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "get_weather"},
        temperature=0,
    )
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert set(json.loads(call.arguments)) == {"city"}


def test_a_batch(client: openai.OpenAI, octavo: Served) -> None:
    body = {"model": octavo.model, "prompt": QUESTION, "max_tokens": 8, "temperature": 0}
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions", "body": body}
        for n in range(3)
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    deadline = time.monotonic() + 60
    while batch.status != "completed":
        assert batch.status in ("validating", "in_progress", "finalizing"), batch
        assert time.monotonic() < deadline
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    results = client.files.content(batch.output_file_id or "").text.splitlines()
    texts = [json.loads(result)["response"]["body"]["choices"][0]["text"] for result in results]
    direct = client.completions.create(
        model=octavo.model, prompt=QUESTION, max_tokens=8, temperature=0
    )
    assert texts == [direct.choices[0].text] * 3
