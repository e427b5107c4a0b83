"""Agents that speak OpenAI's responses: pydantic-ai and LangChain, through a call and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

from tests.clients.conftest import CALL
from tests.server.conftest import running_servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.server.conftest import RunningServer

ANSWER = ["<think>So.</think>", "It is sunny."]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """Its model thinks, and calls a tool."""
    with running_servers() as start:
        server = start(tool_call_parser="hermes", reasoning_parser="qwen3")
        server.engine.pieces = ["<think>Hm.</think>", CALL]
        yield server


async def test_pydantic_ai(server: RunningServer) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
    provider = OpenAIProvider(openai_client=client)
    agent = Agent(OpenAIResponsesModel("fake", provider=provider))
    cities = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather in a city."""
        cities.append(city)
        server.engine.pieces = ANSWER
        return "sunny"

    async with client:
        result = await agent.run("What is the weather in Oslo?")
    assert result.output == "It is sunny."
    assert cities == ["Oslo"]


def test_langchain(server: RunningServer) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    def get_weather(city: str) -> str:
        """The weather in a city."""
        return city

    model = ChatOpenAI(
        model="fake",
        base_url=f"{server.url}/v1",
        api_key="none",
        use_responses_api=True,  # type: ignore[arg-type]
    ).bind_tools([get_weather])
    question = HumanMessage("What is the weather in Oslo?")
    first = model.invoke([question])
    assert isinstance(first, AIMessage)
    (call,) = first.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})
    server.engine.pieces = ANSWER
    conversation = [question, first, ToolMessage("sunny", tool_call_id=call["id"])]
    assert model.invoke(conversation).text == "It is sunny."
    assert "".join(chunk.text for chunk in model.stream(conversation)) == "It is sunny."
    template = server.tokenizer.chat_template
    assert template is not None
    assert [message["role"] for message in template.calls[-1]["messages"]] == [
        "user",
        "assistant",
        "tool",
    ]
