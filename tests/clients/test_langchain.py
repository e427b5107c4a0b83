"""LangChain's client of OpenAI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from tests.clients.conftest import USER, cosine
from tests.clients.shapes import ADA, INVENT, Person, is_ada

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

    from tests.clients.conftest import Scripted, Served

pytestmark = [
    pytest.mark.model,
    # It puts what was parsed into OpenAI's message, which pydantic does not expect there.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]


def chat_of(served: Served, **settings: Any) -> ChatOpenAI:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        base_url=served.v1,
        api_key=SecretStr("unused"),
        model=served.model,
        temperature=0,
        max_retries=0,
        **settings,
    )


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def test_invoke_and_stream(octavo: Served) -> None:
    chat = chat_of(octavo, max_tokens=12, stream_usage=True)
    whole = chat.invoke([("system", "Be brief."), ("human", "What is a fox?")])
    assert whole.response_metadata["finish_reason"] in ("stop", "length")
    chunks = list(chat.stream([("system", "Be brief."), ("human", "What is a fox?")]))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert len(chunks) > 5
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.usage_metadata is not None
    assert whole.usage_metadata is not None
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"] > 0


async def test_async_and_batch(octavo: Served) -> None:
    chat = chat_of(octavo, max_tokens=4)
    answers = await chat.abatch(["Say yes.", "Say no."])
    assert all(answer.text for answer in answers)
    assert [c.text async for c in chat.astream("Say yes.")]
    await chat.root_async_client.close()


def test_logprobs(octavo: Served) -> None:
    chat = chat_of(octavo, max_tokens=3).bind(logprobs=True, top_logprobs=2)
    content = chat.invoke("Hello").response_metadata["logprobs"]["content"]
    assert [len(position["top_logprobs"]) for position in content] == [2] * len(content)


def test_tools_there_and_back(scripted: Scripted) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

    scripted.says(scripted.engine.texts[0], "It is sunny.")
    chat = chat_of(scripted).bind_tools([get_weather])
    history: list[Any] = [HumanMessage(USER["content"])]
    answer = chat.invoke(history)
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})
    history += [answer, ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"])]
    assert chat.invoke(history).text == "It is sunny."


def test_streamed_tools(scripted: Scripted) -> None:
    first, *rest = chat_of(scripted).bind_tools([get_weather]).stream([("human", "Oslo?")])
    for chunk in rest:
        first += chunk
    (call,) = first.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})


@pytest.mark.parametrize("choice", ["any", "get_weather"])
def test_forced_tools(scripted: Scripted, choice: str) -> None:
    chat = chat_of(scripted).bind_tools([get_weather], tool_choice=choice)
    (call,) = chat.invoke([("human", USER["content"])]).tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})
    assert scripted.is_bound


def test_structured_output(octavo: Served) -> None:
    chat = chat_of(octavo, max_tokens=64).with_structured_output(Person, method="json_schema")
    assert isinstance(chat.invoke(INVENT), Person)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_streamed_structured_output(scripted: Scripted, method: Any) -> None:
    call = f'<tool_call>\n{{"name": "Person", "arguments": {ADA}}}\n</tool_call>'
    scripted.says(call if method == "function_calling" else ADA)
    chat = chat_of(scripted).with_structured_output(Person, method=method)
    assert is_ada(chat.invoke(INVENT))
    *_, last = chat.stream(INVENT)
    assert is_ada(last)
    assert scripted.is_bound


def test_json_mode(scripted: Scripted) -> None:
    scripted.says(ADA)
    chat = chat_of(scripted).with_structured_output(Person, method="json_mode")
    assert is_ada(chat.invoke("Invent a person, as JSON."))
    (params,) = scripted.params
    assert params.structured_outputs is not None
    assert params.structured_outputs.json_object


async def test_embeddings(embedder: Served) -> None:
    """Without the check of lengths, for which it would cut texts by OpenAI's own vocabularies."""
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(
        base_url=embedder.v1,
        api_key=SecretStr("unused"),
        model=embedder.model,
        check_embedding_ctx_length=False,
    )
    cat, kitten = embeddings.embed_documents(["A cat sleeps.", "A kitten naps."])
    assert cosine(cat, kitten) > 0.5 > cosine(cat, embeddings.embed_query("Shares fell."))
    assert cosine(cat, await embeddings.aembed_query("A cat sleeps.")) > 0.999
    await embeddings.async_client._client.close()
