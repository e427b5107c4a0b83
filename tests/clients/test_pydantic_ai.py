"""Pydantic AI's agents over OpenAI's chats."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.clients.conftest import CALL
from tests.clients.shapes import ADA, Person, is_ada

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pydantic_ai import Agent

    from tests.clients.conftest import Scripted, Served

    AgentOf = Callable[..., Agent[None, Any]]

pytestmark = [pytest.mark.model]

SETTINGS: Any = {"temperature": 0, "max_tokens": 64}


@pytest.fixture
async def agent_of() -> AsyncIterator[AgentOf]:
    """Makes agents, whose connections are closed at the end."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with AsyncExitStack() as stack:

        def make(served: Served, **options: Any) -> Agent[None, Any]:
            client = openai.AsyncOpenAI(base_url=served.v1, api_key="unused", max_retries=0)
            stack.push_async_callback(client.close)
            model = OpenAIChatModel(served.model, provider=OpenAIProvider(openai_client=client))
            return Agent(model, model_settings=SETTINGS, retries=0, **options)

        yield make


async def test_run_and_stream(octavo: Served, agent_of: AgentOf) -> None:
    agent = agent_of(octavo, instructions="Be brief.")
    asked: Any = {"temperature": 0, "max_tokens": 12}
    whole = await agent.run("What is a fox?", model_settings=asked)
    assert whole.usage.output_tokens > 0
    async with agent.run_stream("What is a fox?", model_settings=asked) as stream:
        texts = [text async for text in stream.stream_text(delta=True, debounce_by=None)]
    assert len(texts) > 2
    assert "".join(texts) == whole.output


async def test_tools(scripted: Scripted, agent_of: AgentOf) -> None:
    cities = []

    def get_weather(city: str) -> str:
        """The weather in a city."""
        cities.append(city)
        return "sunny"

    scripted.says(CALL, "It is sunny.")
    agent = agent_of(scripted, tools=[get_weather])
    assert (await agent.run("What is the weather in Oslo?")).output == "It is sunny."
    scripted.says(CALL, "It is sunny.")
    async with agent.run_stream("What is the weather in Oslo?") as stream:
        assert await stream.get_output() == "It is sunny."
    assert cities == ["Oslo"] * 2


@pytest.mark.parametrize("mode", ["ToolOutput", "NativeOutput"])
async def test_the_real_model(octavo: Served, agent_of: AgentOf, mode: str) -> None:
    import pydantic_ai

    output_type = getattr(pydantic_ai, mode)(Person)
    agent = agent_of(octavo, output_type=output_type)
    assert isinstance((await agent.run("Invent a person.")).output, Person)


@pytest.mark.parametrize("mode", ["ToolOutput", "NativeOutput", "PromptedOutput"])
async def test_typed_output(scripted: Scripted, agent_of: AgentOf, mode: str) -> None:
    import pydantic_ai

    call = f'<tool_call>\n{{"name": "final_result", "arguments": {ADA}}}\n</tool_call>'
    scripted.says(call if mode == "ToolOutput" else ADA)
    agent = agent_of(scripted, output_type=getattr(pydantic_ai, mode)(Person))
    assert is_ada((await agent.run("Invent a person.")).output)
    async with agent.run_stream("Invent a person.") as stream:
        assert is_ada(await stream.get_output())
