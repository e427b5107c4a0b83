"""Ollama's own client, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import ollama
import pytest

from tests.clients.conftest import CALL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.conftest import Scripted, Served

pytestmark = [pytest.mark.model]

FOX = [{"role": "user", "content": "What is a fox? One sentence."}]
GREEDY = {"temperature": 0, "num_predict": 20}


@pytest.fixture
def client(octavo: Served) -> Iterator[ollama.Client]:
    with ollama.Client(host=octavo.url) as client:
        yield client


@pytest.fixture
def scripted_client(scripted: Scripted) -> Iterator[ollama.Client]:
    with ollama.Client(host=scripted.url) as client:
        yield client


def check_stats(answer: ollama.ChatResponse | ollama.GenerateResponse) -> None:
    assert answer.done
    assert answer.done_reason in ("stop", "length")
    parts = (answer.load_duration, answer.prompt_eval_duration, answer.eval_duration)
    assert all(part is not None and part > 0 for part in parts)
    assert answer.total_duration == sum(part or 0 for part in parts)
    assert answer.prompt_eval_count
    assert answer.eval_count


def test_chat(client: ollama.Client, octavo: Served) -> None:
    answer = client.chat(octavo.model, FOX, options=GREEDY)
    assert answer.message.role == "assistant"
    assert "fox" in (answer.message.content or "").lower()
    check_stats(answer)
    *lines, last = client.chat(octavo.model, FOX, options=GREEDY, stream=True)
    assert "".join(line.message.content or "" for line in lines) == answer.message.content
    check_stats(last)
    assert last.eval_count == answer.eval_count
    assert last.prompt_eval_count == answer.prompt_eval_count


def test_generate(client: ollama.Client, octavo: Served) -> None:
    prompt = "What is a fox? One sentence."
    answer = client.generate(octavo.model, prompt, options=GREEDY)
    assert answer.response == client.chat(octavo.model, FOX, options=GREEDY).message.content
    check_stats(answer)
    lines = list(client.generate(octavo.model, prompt, options=GREEDY, stream=True))
    assert "".join(line.response or "" for line in lines) == answer.response
    assert lines[-1].context == answer.context
    assert len(answer.context or ()) == answer.prompt_eval_count + answer.eval_count  # type: ignore[operator]
    more = client.generate(octavo.model, "And a dog?", context=answer.context, options=GREEDY)
    assert (more.prompt_eval_count or 0) > len(answer.context or ())


def test_generate_raw_is_the_rendered_prompt(client: ollama.Client, octavo: Served) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *FOX]
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    raw = client.generate(octavo.model, f"{text}<|im_start|>assistant\n", raw=True, options=GREEDY)
    chat = client.chat(octavo.model, messages, options=GREEDY)
    assert raw.response == chat.message.content
    assert raw.prompt_eval_count == chat.prompt_eval_count
    assert raw.context is None


def test_stop_and_seed(client: ollama.Client, octavo: Served) -> None:
    options = {"seed": 7, "temperature": 1.5, "num_predict": 20}
    first, second = (
        client.generate(octavo.model, "Tell a story.", options=options).response for _ in range(2)
    )
    assert first == second
    whole = client.chat(octavo.model, FOX, options=GREEDY).message.content or ""
    word = whole.split()[5]
    answer = client.chat(octavo.model, FOX, options={**GREEDY, "stop": [word]})
    assert answer.done_reason == "stop"
    assert answer.message.content == whole[: whole.index(word)]


def test_format(client: ollama.Client, octavo: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}, "mood": {"enum": ["happy", "sad"]}},
        "required": ["age", "mood"],
        "additionalProperties": False,
    }
    messages = [{"role": "user", "content": "A fox is five years old and happy. As JSON."}]
    answer = client.chat(octavo.model, messages, format=schema, options=GREEDY)
    value = json.loads(answer.message.content or "")
    assert set(value) == {"age", "mood"}
    assert value["mood"] in ("happy", "sad")


def test_at_the_same_time(octavo: Served) -> None:
    async def ask(client: ollama.AsyncClient, number: int) -> str:
        messages = [{"role": "user", "content": f"Say the number {number}."}]
        options = {"temperature": 0, "num_predict": 12}
        whole = await client.chat(octavo.model, messages, options=options)
        stream = await client.chat(octavo.model, messages, options=options, stream=True)
        pieces = [line.message.content or "" async for line in stream]
        assert "".join(pieces) == whole.message.content
        return whole.message.content or ""

    async def ask_all() -> list[str]:
        async with ollama.AsyncClient(host=octavo.url) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(4)))

    assert all(asyncio.run(ask_all()))


def test_tools(scripted: Scripted, scripted_client: ollama.Client) -> None:
    """A call, its result, and the answer to it, with a tool that the client makes of a function."""

    def get_weather(city: str) -> str:
        """The weather in a city.

        Args:
            city: its name.
        """
        return f"3 °C in {city}"

    scripted.says("One moment.\n" + CALL, CALL, "It is cold in Oslo.")
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    answer = scripted_client.chat(scripted.model, messages, tools=[get_weather])
    assert answer.message.content == "One moment."
    *_, streamed, last = scripted_client.chat(
        scripted.model, messages, tools=[get_weather], stream=True
    )
    assert last.done_reason == "stop"
    for message in (answer.message, streamed.message):
        (call,) = message.tool_calls or ()
        assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Oslo"})
    result = get_weather(**call.function.arguments)
    messages += [answer.message, {"role": "tool", "content": result, "tool_name": "get_weather"}]
    answer = scripted_client.chat(scripted.model, messages, tools=[get_weather])
    assert answer.message.content == "It is cold in Oslo."
    assert answer.message.tool_calls is None


def test_models(client: ollama.Client, octavo: Served) -> None:
    (listed,) = client.list().models
    assert listed.model == f"{octavo.model}:latest"
    assert client.chat(listed.model, FOX, options={"num_predict": 1}).done
    (loaded,) = client.ps().models
    assert (loaded.model, loaded.context_length) == (listed.model, 2048)
    shown = client.show(listed.model)
    assert "im_start" in (shown.template or "")
    assert "completion" in (shown.capabilities or ())
    assert "tools" in (shown.capabilities or ())


def test_errors(client: ollama.Client, octavo: Served, scripted: Scripted) -> None:
    def error(status: int, **fields: Any) -> str:
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat(**{"model": octavo.model, "messages": FOX, **fields})
        assert caught.value.status_code == status
        return str(caught.value.error)

    assert "not served here" in error(404, model="llama3")
    assert error(400, options={"num_ctx": 10_000}).startswith("options.num_ctx")
    assert error(400, options={"temperature": -1}).startswith("options.temperature")
    assert error(400, think=True).startswith("think")
    image = {"role": "user", "content": "x", "images": [b"x"]}
    assert error(400, messages=[image]).startswith("messages[0].images")
    with pytest.raises(ollama.ResponseError, match="is not served"):
        client.pull("llama3")
    with pytest.raises(ollama.ResponseError, match="is not served"):
        client.delete(octavo.model)
    with pytest.raises(ollama.ResponseError, match="embed"):
        client.embed(octavo.model, "x")
    with ollama.Client(host=scripted.url) as other, pytest.raises(ollama.ResponseError):
        list(other.chat("nothing", FOX, stream=True))


def test_embed(scripted_client: ollama.Client, scripted: Scripted) -> None:
    answer = scripted_client.embed(scripted.model, ["a fox", "a dog"])
    assert len(answer.embeddings) == 2
    assert answer.prompt_eval_count
    old = scripted_client.embeddings(scripted.model, "a fox")
    assert list(old.embedding) == list(answer.embeddings[0])
