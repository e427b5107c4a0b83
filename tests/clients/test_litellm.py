"""LiteLLM, which calls a server by its provider's name."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.conftest import CALL, USER, WEATHER, cosine
from tests.clients.shapes import ADA, INVENT, Person, is_ada

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from tests.clients.conftest import Scripted, Served

pytestmark = [
    pytest.mark.model,
    # What it makes of pydantic's models.
    pytest.mark.filterwarnings("ignore:Items? .* `ReadOnly` qualifier:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:Accessing the 'model_:pydantic.warnings.PydanticDeprecatedSince211"
    ),
]

FOX: list[Any] = [{"role": "user", "content": "What is a fox? One sentence."}]
OPENAI_LIKE = ["openai", "hosted_vllm"]


@pytest.fixture(scope="module")
def litellm() -> Iterator[ModuleType]:
    """The module. It keeps its connections, which are closed at the end."""
    import litellm

    litellm.telemetry = False
    yield litellm
    for client in litellm.in_memory_llm_clients_cache.cache_dict.values():
        if not inspect.iscoroutinefunction(getattr(client, "close", None)):
            client.close()


def asked(served: Served, provider: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": f"{provider}/{served.model}",
        "api_base": served.v1,
        "api_key": "unused",
        "num_retries": 0,
        **fields,
    }


@pytest.mark.parametrize("provider", OPENAI_LIKE)
def test_chat_and_stream(litellm: ModuleType, octavo: Served, provider: str) -> None:
    fields = asked(octavo, provider, messages=FOX, temperature=0, max_tokens=8)
    whole = litellm.completion(**fields)
    assert whole.choices[0].message.content
    assert whole.usage.completion_tokens == 8
    chunks = list(litellm.completion(**fields, stream=True, stream_options={"include_usage": True}))
    again = litellm.stream_chunk_builder(chunks, messages=FOX)
    assert again.choices[0].message.content == whole.choices[0].message.content
    assert again.usage.completion_tokens == 8


@pytest.mark.parametrize("provider", OPENAI_LIKE)
async def test_async(litellm: ModuleType, octavo: Served, provider: str) -> None:
    from litellm.llms.custom_httpx.async_client_cleanup import close_litellm_async_clients

    fields = asked(octavo, provider, messages=FOX, temperature=0, max_tokens=4)
    whole = await litellm.acompletion(**fields)
    stream = await litellm.acompletion(**fields, stream=True)
    texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    await close_litellm_async_clients()
    assert "".join(texts) == whole.choices[0].message.content


@pytest.mark.parametrize("provider", OPENAI_LIKE)
def test_tools_there_and_back(litellm: ModuleType, scripted: Scripted, provider: str) -> None:
    scripted.says(CALL, CALL, "It is sunny.")
    fields = asked(scripted, provider, tools=[WEATHER])
    chunks = list(litellm.completion(messages=[USER], **fields, stream=True))
    streamed = litellm.stream_chunk_builder(chunks).choices[0].message
    choice = litellm.completion(messages=[USER], **fields).choices[0]
    assert choice.finish_reason == "tool_calls"
    for message in (streamed, choice.message):
        (call,) = message.tool_calls
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments) == {"city": "Oslo"}
    history = [
        USER,
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": "sunny"},
    ]
    answer = litellm.completion(messages=history, **fields)
    assert answer.choices[0].message.content == "It is sunny."


@pytest.mark.parametrize("provider", OPENAI_LIKE)
def test_forced_tools(litellm: ModuleType, scripted: Scripted, provider: str) -> None:
    answer = litellm.completion(
        messages=[USER], tools=[WEATHER], tool_choice="required", **asked(scripted, provider)
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert scripted.is_bound


@pytest.mark.parametrize("provider", OPENAI_LIKE)
def test_response_format(litellm: ModuleType, scripted: Scripted, provider: str) -> None:
    scripted.says(ADA)
    answer = litellm.completion(
        messages=INVENT, response_format=Person, **asked(scripted, provider)
    )
    assert is_ada(Person.model_validate_json(answer.choices[0].message.content))
    assert scripted.is_bound


def test_text_completion(litellm: ModuleType, octavo: Served) -> None:
    answer = litellm.text_completion(
        prompt="The capital of France is",
        temperature=0,
        max_tokens=4,
        **asked(octavo, "text-completion-openai"),
    )
    assert "Paris" in answer.choices[0].text


@pytest.mark.parametrize("provider", OPENAI_LIKE)
def test_embedding(litellm: ModuleType, embedder: Served, provider: str) -> None:
    answer = litellm.embedding(
        input=["A cat sleeps.", "A kitten naps.", "Shares fell."], **asked(embedder, provider)
    )
    cat, kitten, shares = (item["embedding"] for item in answer.data)
    assert cosine(cat, kitten) > 0.5 > cosine(cat, shares)


# The APIs of others, which LiteLLM speaks to the server's root.
OTHERS = ["anthropic", "ollama_chat"]


@pytest.mark.parametrize("provider", OTHERS)
def test_other_apis(litellm: ModuleType, octavo: Served, provider: str) -> None:
    fields = asked(octavo, provider, messages=FOX, temperature=0, max_tokens=8)
    fields["api_base"] = octavo.url
    whole = litellm.completion(**fields)
    assert whole.choices[0].message.content
    assert whole.usage.completion_tokens == 8
    chunks = list(litellm.completion(**fields, stream=True))
    again = litellm.stream_chunk_builder(chunks, messages=FOX)
    assert again.choices[0].message.content == whole.choices[0].message.content


@pytest.mark.parametrize("provider", OTHERS)
def test_tools_of_other_apis(litellm: ModuleType, scripted: Scripted, provider: str) -> None:
    fields = asked(scripted, provider, messages=[USER], tools=[WEATHER])
    fields["api_base"] = scripted.url
    choice = litellm.completion(**fields).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
