"""`/v1/responses` with the official client: shapes, streams, the store and the background."""

from __future__ import annotations

import itertools
import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pydantic
import pytest

from octavo.server import response_runs
from octavo.server.state import responses
from tests.server.fake_engine import NUM_SPECIAL, FakeEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from openai.types.responses import Response

    from tests.server.conftest import RunningServer

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
PIECES = [
    "<think>\nI had ",
    "better look.",
    "\n</think>\n\n",
    "Let me see — 世界.\n",
    '<tool_call>\n{"name": "get_weather", "arguments": {"ci',
    'ty": "Oslo"}}\n</tool_call>',
]


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    yield from client_of(server)


def client_of(server: RunningServer, key: str = "unused") -> Iterator[openai.OpenAI]:
    with (
        httpx.Client(trust_env=False, verify=False) as http,
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key=key, max_retries=0, http_client=http
        ) as client,
    ):
        yield client


@pytest.fixture
def thinking(serve: Callable[..., RunningServer]) -> Iterator[tuple[openai.OpenAI, FakeEngine]]:
    """A client of a server whose model reasons and calls tools."""
    server = serve(tool_call_parser="hermes", reasoning_parser="qwen3")
    server.engine.pieces = PIECES
    for client in client_of(server):
        yield client, server.engine


def said(response: Response) -> dict[str, Any]:
    """What two answers to one request have in common."""
    dump = response.model_dump(mode="json")
    for name in ("id", "created_at", "completed_at", "object"):
        dump.pop(name)
    for item in dump["output"]:
        item.pop("id")
        item.pop("call_id", None)
        for part in item.get("content") or ():
            part.pop("parsed", None)
        item.pop("parsed_arguments", None)
    return dump


def prompts(engine: FakeEngine) -> list[str]:
    """What the engine was given."""
    return [
        bytes(token - NUM_SPECIAL for token in ids if token >= NUM_SPECIAL).decode()
        for ids, _ in engine.requests.values()
    ]


# One answer


def test_text(client: openai.OpenAI, server: RunningServer) -> None:
    response = client.responses.create(
        model="fake",
        input="What is a fox?",
        instructions="Be brief.",
        max_output_tokens=20,
        temperature=0.5,
        top_p=0.9,
        metadata={"a": "b"},
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        service_tier="auto",
        max_tool_calls=3,
    )
    ((prompt, params),) = server.engine.requests.values()
    assert prompts(server.engine) == ["<system>Be brief.\n<user>What is a fox?\n<assistant>"]
    assert (params.max_tokens, params.temperature, params.top_p) == (20, 0.5, 0.9)
    assert response.id.startswith("resp_")
    assert response.object == "response"
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    data = bytes(t - NUM_SPECIAL for t in server.engine.answer(prompt, params)[:20])
    assert response.output_text == data.decode(errors="ignore")
    assert response.usage is not None
    assert response.usage.input_tokens == len(prompt)
    assert response.usage.input_tokens_details.cached_tokens == len(prompt) // 2
    assert response.usage.output_tokens == 20
    assert response.usage.output_tokens_details.reasoning_tokens == 0
    assert response.usage.total_tokens == len(prompt) + 20
    asked = (response.temperature, response.top_p, response.max_output_tokens, response.metadata)
    assert asked == (0.5, 0.9, 20, {"a": "b"})
    labels = (response.user, response.safety_identifier, response.prompt_cache_key)
    assert labels == ("u", "s", "k")
    assert (response.instructions, response.max_tool_calls) == ("Be brief.", 3)


def test_reasoning_text_and_calls(thinking: tuple[openai.OpenAI, FakeEngine]) -> None:
    client, _ = thinking
    response = client.responses.create(model="fake", input="Weather?", tools=[WEATHER])
    assert response.status == "completed"
    reasoning, message, call = response.output
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert [part.text for part in reasoning.content] == ["I had better look."]
    assert reasoning.summary == []
    assert message.type == "message"
    assert response.output_text == "Let me see — 世界."
    assert call.type == "function_call"
    assert call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "Oslo"}
    assert {item.status for item in response.output} == {"completed"}  # type: ignore[union-attr]
    assert response.usage is not None
    num_reasoning = response.usage.output_tokens_details.reasoning_tokens
    # The fake engine's tokens are bytes; its marks count as reasoning.
    assert num_reasoning == len("".join(PIECES[:3]))
    assert response.tools[0].to_dict() == WEATHER


def test_logprobs(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="fake",
        input="x",
        max_output_tokens=9,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    (message,) = response.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert b"".join(bytes(p.bytes) for p in part.logprobs).decode(errors="ignore") == part.text
    assert [top.logprob for top in part.logprobs[0].top_logprobs] == [-0.25, -1.25]


@pytest.mark.parametrize("end", ["stop", "length"])
def test_the_stream_adds_up_to_the_whole(
    thinking: tuple[openai.OpenAI, FakeEngine], end: str
) -> None:
    client, engine = thinking
    engine.pieces_end = end
    asked: dict[str, Any] = {
        "model": "fake",
        "input": "Weather?",
        "tools": [WEATHER],
        "include": ["message.output_text.logprobs"],
    }
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == ("response.completed" if end == "stop" else "response.incomplete")
    assert said(last.response) == said(whole)
    assert [k for k, _ in itertools.groupby(event.type for event in events)] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        last.type,
    ]
    # What the events say adds up to what the last one shows.
    texts: dict[tuple[str, int], str] = {}
    for event in events:
        if event.type.endswith(".delta"):
            place = (event.type, event.output_index)  # type: ignore[union-attr]
            texts[place] = texts.get(place, "") + event.delta  # type: ignore[union-attr,operator]
        elif event.type.endswith("_text.done"):
            place = (event.type[:-4] + "delta", event.output_index)  # type: ignore[union-attr]
            assert event.text == texts[place]  # type: ignore[union-attr]
        elif event.type == "response.output_item.added":
            shown = event.item.to_dict()
            assert not shown.get("content")
            assert not shown.get("arguments")
        elif event.type == "response.output_item.done":
            assert event.item == last.response.output[event.output_index]
    assert texts["response.output_text.delta", 1] == last.response.output_text


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_pieces_do_not_matter(thinking: tuple[openai.OpenAI, FakeEngine], size: int) -> None:
    client, engine = thinking
    asked: dict[str, Any] = {"model": "fake", "input": "Weather?", "tools": [WEATHER]}
    whole = client.responses.create(**asked)
    text = "".join(PIECES)
    engine.pieces = [text[at : at + size] for at in range(0, len(text), size)]
    *_, last = client.responses.create(**asked, stream=True)
    assert last.type == "response.completed"
    assert said(last.response)["output"] == said(whole)["output"]
    if size == 1:
        assert last.response.usage == whole.usage


def test_the_clients_own_accumulation(thinking: tuple[openai.OpenAI, FakeEngine]) -> None:
    client, _ = thinking
    whole = client.responses.create(model="fake", input="Weather?", tools=[WEATHER])
    with client.responses.stream(model="fake", input="Weather?", tools=[WEATHER]) as stream:
        snapshots = [e.snapshot for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert said(final) == said(whole)
    assert snapshots[-1] == whole.output_text


def test_parse(client: openai.OpenAI, server: RunningServer) -> None:
    class Fox(pydantic.BaseModel):
        name: str

    server.engine.pieces = ['{"name": ', '"Renard"}']
    response = client.responses.parse(model="fake", input="x", text_format=Fox)
    assert response.output_parsed == Fox(name="Renard")
    ((_, params),) = server.engine.requests.values()
    assert params.structured_outputs is not None
    assert params.structured_outputs.json == Fox.model_json_schema() | {
        "additionalProperties": False
    }
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"


# Conversations


def test_items_are_messages(thinking: tuple[openai.OpenAI, FakeEngine]) -> None:
    client, engine = thinking
    first = client.responses.create(model="fake", input="Weather?", tools=[WEATHER])
    call = first.output[-1]
    assert call.type == "function_call"
    items: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Wea"}]},
        *[item.model_dump() for item in first.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "12 °C"},
    ]
    engine.requests.clear()
    client.responses.create(model="fake", input=items, tools=[WEATHER])
    sent = client.responses.create(
        model="fake", input=items[-1:], previous_response_id=first.id, tools=[WEATHER]
    )
    by_items, by_id = prompts(engine)
    answered = "<assistant>Let me see — 世界.\n<tool>12 °C\n<assistant>"
    assert by_items == f"<system>Be brief.\n<user>Wea\n{answered}"
    assert by_id == f"<user>Weather?\n{answered}"
    assert sent.previous_response_id == first.id


def test_the_template_gets_reasoning_and_calls(serve: Callable[..., RunningServer]) -> None:
    server = serve(tool_call_parser="hermes", reasoning_parser="qwen3")
    server.engine.pieces = PIECES
    for client in client_of(server):
        first = client.responses.create(model="fake", input="Weather?", tools=[WEATHER])
        client.responses.create(model="fake", input="And?", previous_response_id=first.id)
    template = server.tokenizer.chat_template
    assert template is not None
    (_, assistant, _) = template.calls[-1]["messages"]
    assert assistant["reasoning_content"] == "I had better look."
    assert assistant["content"] == "Let me see — 世界."
    (call,) = assistant["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": {"city": "Oslo"}}


def test_a_chain_is_rebuilt(client: openai.OpenAI, server: RunningServer) -> None:
    answers, last = [], None
    for text in ("one", "two", "three"):
        response = client.responses.create(
            model="fake",
            input=text,
            max_output_tokens=6,
            instructions=f"system of {text}",
            previous_response_id=last,
        )
        last = response.id
        answers.append(response.output_text)
    assert prompts(server.engine)[-1] == (
        f"<system>system of three\n<user>one\n<assistant>{answers[0]}\n"
        f"<user>two\n<assistant>{answers[1]}\n<user>three\n<assistant>"
    )
    (item,) = client.responses.input_items.list(last or "").data
    assert item.type == "message"
    assert item.content[0].to_dict() == {"type": "input_text", "text": "three"}


def test_truncation(serve: Callable[..., RunningServer]) -> None:
    server = serve(engine=FakeEngine(max_model_len=128))
    items: list[Any] = []
    for n in range(9):
        items += [{"role": "user", "content": f"{n} " + 20 * "u"}]
        items += [{"role": "assistant", "content": f"{n} " + 5 * "a"}]
    items = items[:-1]
    for client in client_of(server):
        asked: dict[str, Any] = {"model": "fake", "input": items, "max_output_tokens": 8}
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**asked)
        assert caught.value.code == "context_length_exceeded"
        response = client.responses.create(**asked, truncation="auto", instructions="Be brief.")
        assert response.truncation == "auto"
        (prompt,) = prompts(server.engine)
        assert prompt.startswith("<system>Be brief.\n<user>7 ")
        assert prompt.endswith("u\n<assistant>")
        items[-1]["content"] *= 20
        with pytest.raises(openai.BadRequestError, match="context"):
            client.responses.create(**asked, truncation="auto")


# The store


def test_stored_responses(client: openai.OpenAI) -> None:
    made = client.responses.create(
        model="fake",
        input=[{"role": "user", "content": text} for text in "abcde"],
        max_output_tokens=4,
    )
    assert client.responses.retrieve(made.id) == made
    listed = list(client.responses.input_items.list(made.id, limit=2, order="asc"))
    assert [item.content[0].text for item in listed] == list("abcde")  # type: ignore[union-attr]
    newest = client.responses.input_items.list(made.id).data[0]
    assert newest == listed[-1]
    client.responses.delete(made.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            gone(made.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="fake", input="x", previous_response_id=made.id)
    assert caught.value.param == "previous_response_id"


def test_store_false_keeps_nothing(client: openai.OpenAI) -> None:
    made = client.responses.create(model="fake", input="x", max_output_tokens=4, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_streamed_response_is_stored(client: openai.OpenAI) -> None:
    *_, last = client.responses.create(model="fake", input="x", max_output_tokens=4, stream=True)
    assert last.type == "response.incomplete"
    assert client.responses.retrieve(last.response.id) == last.response


def test_a_response_belongs_to_its_key(serve: Callable[..., RunningServer]) -> None:
    server = serve(api_keys=("sk-1", "sk-2"))
    for one, two in zip(client_of(server, "sk-1"), client_of(server, "sk-2"), strict=True):
        made = one.responses.create(model="fake", input="x", max_output_tokens=4)
        assert one.responses.retrieve(made.id).id == made.id
        for ask in (two.responses.retrieve, two.responses.delete, two.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                ask(made.id)
        with pytest.raises(openai.NotFoundError):
            two.responses.create(model="fake", input="x", previous_response_id=made.id)


def test_servers_share_a_folder(serve: Callable[..., RunningServer], tmp_path: Path) -> None:
    servers = [serve(state_dir=str(tmp_path)) for _ in range(2)]
    for one, two in zip(*map(client_of, servers), strict=True):
        made = one.responses.create(model="fake", input="x", max_output_tokens=4)
        assert two.responses.retrieve(made.id) == made
        servers[0].engine.delay = 0.02
        running = one.responses.create(model="fake", input="x", background=True)
        assert two.responses.cancel(running.id).status == "cancelled"
        servers[0].wait_until_idle()


@pytest.mark.parametrize("damage", ["not a database", "no folder"])
def test_a_broken_store_is_a_503(
    serve: Callable[..., RunningServer], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "state"
    if damage == "not a database":
        folder.mkdir()
        (folder / "state.db").write_bytes(b"nonsense" * 4096)
    server = serve(state_dir=str(folder))
    for client in client_of(server):
        with pytest.raises(openai.InternalServerError, match="--state-dir") as caught:
            client.responses.create(model="fake", input="x", max_output_tokens=4)
        assert (caught.value.status_code, caught.value.code) == (503, "store_unavailable")
        assert client.responses.create(
            model="fake", input="x", max_output_tokens=4, store=False
        ).output_text
        with pytest.raises(openai.APIError, match="--state-dir"):
            list(client.responses.create(model="fake", input="x", stream=True))
        folder.mkdir(exist_ok=True)
        (folder / "state.db").unlink(missing_ok=True)
        assert client.responses.create(model="fake", input="x", max_output_tokens=4).id
    server.assert_serves()


# The background


def until_over(client: openai.OpenAI, response_id: str) -> Response:
    deadline = time.monotonic() + 10
    while (response := client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        assert response.output == []
        time.sleep(0.01)
    return response


def test_background(client: openai.OpenAI, server: RunningServer) -> None:
    asked: dict[str, Any] = {"model": "fake", "input": "x", "max_output_tokens": 40}
    whole = client.responses.create(**asked)
    server.engine.delay = 0.01
    made = client.responses.create(**asked, background=True)
    assert made.status == "queued"
    assert made.background is True
    assert server.client.get("/load").json() == {"server_load": 1}  # a drain waits for it
    seen = set()
    while (now := client.responses.retrieve(made.id)).status != "incomplete":
        seen.add(now.status)
    assert "in_progress" in seen
    over = until_over(client, made.id)
    whole.background = True
    assert said(over) == said(whole)
    assert client.responses.cancel(made.id).status == "incomplete"  # it stays as it is


def test_background_refusals_come_at_once(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.responses.create(model="fake", input="x", background=True, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="store"):
        client.responses.create(model="fake", input="x", background=True, store=False)
    made = client.responses.create(model="fake", input="x", max_output_tokens=2)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(made.id)


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_background_can_be_ended(client: openai.OpenAI, server: RunningServer, how: str) -> None:
    server.engine.delay = 0.02
    made = client.responses.create(model="fake", input="x", background=True)
    while not server.engine.num_open:
        time.sleep(0.005)
    if how == "cancel":
        assert client.responses.cancel(made.id).status == "cancelled"
        assert client.responses.retrieve(made.id).status == "cancelled"
    else:
        client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(made.id)
    server.wait_until_idle()
    assert server.engine.aborted


def test_a_background_stream_can_be_resumed(client: openai.OpenAI, server: RunningServer) -> None:
    server.engine.delay = 0.003
    seen = []
    stream = client.responses.create(
        model="fake", input="x", max_output_tokens=90, background=True, stream=True
    )
    for event in stream:
        seen.append(event)
        if len(seen) == 20:
            break
    stream.close()
    first = seen[0]
    assert first.type == "response.created"
    rest = client.responses.retrieve(
        first.response.id, stream=True, starting_after=seen[-1].sequence_number
    )
    seen += list(rest)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    last = seen[-1]
    assert last.type == "response.incomplete"
    assert client.responses.retrieve(last.response.id) == last.response
    made = client.responses.create(model="fake", input="x", max_output_tokens=2)
    with pytest.raises(openai.BadRequestError, match="stream"):
        client.responses.retrieve(made.id, stream=True)


def test_a_response_whose_server_is_gone_has_failed(
    client: openai.OpenAI, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "ALIVE_S", -1.0)  # as if nobody had spoken of it for long
    monkeypatch.setattr(response_runs, "NEWS_S", 0.05)
    server.engine.delay = 0.02
    asked: dict[str, Any] = {"model": "fake", "input": "x", "background": True}
    asked["max_output_tokens"] = 30
    with pytest.raises(openai.APIError, match="ended before"):
        list(client.responses.create(**asked, stream=True))
    made = client.responses.create(**asked)
    lost = client.responses.retrieve(made.id)
    assert lost.status == "failed"
    assert lost.error is not None
    assert lost.error.message == response_runs.LOST
    server.wait_until_idle(timeout=10.0)
    assert client.responses.retrieve(made.id) == lost


def test_a_stream_of_a_deleted_response_ends(client: openai.OpenAI, server: RunningServer) -> None:
    server.engine.delay = 0.02
    stream = client.responses.create(model="fake", input="x", background=True, stream=True)
    first = next(iter(stream))
    assert first.type == "response.created"
    client.responses.delete(first.response.id)
    with pytest.raises(openai.APIError, match="deleted"):
        list(stream)
    server.wait_until_idle()


# Failures


def test_failures(client: openai.OpenAI, server: RunningServer) -> None:
    server.engine.fail_at = 4
    asked: dict[str, Any] = {"model": "fake", "input": "x"}
    with pytest.raises(openai.InternalServerError) as caught:
        client.responses.create(**asked)
    assert "secret" not in str(caught.value)
    *_, last = client.responses.create(**asked, stream=True)
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert "secret" not in last.response.error.message
    assert client.responses.retrieve(last.response.id).status == "failed"
    made = client.responses.create(**asked, background=True)
    assert until_over(client, made.id).status == "failed"
    server.engine.fail_at = None
    server.assert_serves()


USER = {"role": "user", "content": "hello"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"content": "x"}]}, "input[0].role"),
    ({"input": [{**USER, "arguments": "{}"}]}, "input[0].arguments"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0].type"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[...].content[...].type",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]},
        "input[0].content[0].type",
    ),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
    (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]},
        "input[0].arguments",
    ),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 99999}, "max_output_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"top_logprobs": 99, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
    ({"truncation": "some"}, "truncation"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"max_tool_calls": 0}, "max_tool_calls"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"),
    ({"unknown": 1}, "unknown"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=str)
def test_what_is_not_served_is_named(
    server: RunningServer, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "fake", "input": "hello", **fields}
    response = server.client.post("/v1/responses", json=body)
    assert response.status_code == 400, response.text
    named = response.json()["error"]["param"]
    assert named is not None
    assert named.replace("[0]", "[...]").startswith(param.replace("[0]", "[...]"))
    assert not server.engine.requests


def test_unknown_query_parameters_are_refused(server: RunningServer) -> None:
    for path, param in (
        ("?foo=1", "foo"),
        ("?starting_after=1", "starting_after"),
        ("?stream=yes", "stream"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?order=up", "order"),
        ("?include=x", "include"),
    ):
        response = server.client.get(f"/v1/responses/resp_1{path}")
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert server.client.get("/v1/responses/resp_1").status_code == 404
