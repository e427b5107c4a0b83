"""The official client against a real server: what it parses is OpenAI's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.server.fake_engine import NUM_SPECIAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.server.conftest import RunningServer

MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is a fox?"}]},
]


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with (
        httpx.Client(trust_env=False, verify=False) as http,
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="unused", max_retries=0, http_client=http
        ) as client,
    ):
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake", "org/alias"]
    assert client.models.retrieve("org/alias").id == "org/alias"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"


def test_chat(client: openai.OpenAI, server: RunningServer) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=MESSAGES, max_completion_tokens=20, temperature=0
    )
    (prompt, params), *_ = server.engine.requests.values()
    assert params.max_tokens == 20
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "fake"
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == len(prompt) + 20
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == len(prompt) // 2
    data = bytes(t - NUM_SPECIAL for t in server.engine.answer(prompt, params)[:20])
    assert choice.message.content == data.decode(errors="ignore")


def test_chat_stream_equals_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "messages": MESSAGES, "max_tokens": 150, "seed": 4}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    *text_chunks, usage_chunk = chunks
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    deltas = [chunk.choices[0].delta for chunk in text_chunks]
    assert all(delta.role is None for delta in deltas[1:])
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in text_chunks]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert reasons[-1] == "length"
    assert deltas[-1].content is None
    assert all(chunk.usage is None for chunk in text_chunks)
    assert usage_chunk.choices == []
    assert usage_chunk.usage == whole.usage


@pytest.mark.parametrize("seed", [None, 4, 2**63 - 2])
def test_chat_with_several_choices(
    client: openai.OpenAI, server: RunningServer, seed: int | None
) -> None:
    asked: dict[str, Any] = {"model": "fake", "messages": MESSAGES, "max_tokens": 30, "n": 3}
    server.engine.delay = 0.001
    whole = client.chat.completions.create(**asked, seed=seed)
    jobs = list(server.engine.requests.values())
    assert len(jobs) == server.engine.most_open == 3
    assert jobs[0][0] == jobs[1][0] == jobs[2][0]
    seeds = [params.seed for _, params in jobs]
    if seed is None:
        assert seeds == [None] * 3
    else:
        assert seeds == [seed, seed + 1, seed + 2 if seed == 4 else -(2**63)]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) == (1 if seed is None else 3)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(jobs[0][0])
    assert whole.usage.completion_tokens == 3 * 30
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == len(jobs[0][0]) // 2

    texts, roles, reasons, usage = ["", "", ""], [0, 0, 0], [0, 0, 0], None
    for chunk in client.chat.completions.create(
        **asked, seed=seed, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role is not None
            reasons[choice.index] += choice.finish_reason is not None
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == reasons == [1, 1, 1]
    assert usage == whole.usage


def test_completions_with_several_choices(client: openai.OpenAI, server: RunningServer) -> None:
    whole = client.completions.create(
        model="fake", prompt=["one", "three"], n=2, best_of=2, seed=1, max_tokens=9
    )
    jobs = list(server.engine.requests.values())
    assert [params.seed for _, params in jobs] == [1, 2, 1, 2]
    assert jobs[0][0] == jobs[1][0] != jobs[2][0] == jobs[3][0]
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    for choice, (prompt, params) in zip(whole.choices, jobs, strict=True):
        data = bytes(t - NUM_SPECIAL for t in server.engine.answer(prompt, params)[:9])
        assert choice.text == data.decode(errors="ignore")
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(jobs[0][0]) + len(jobs[2][0])
    assert whole.usage.completion_tokens == 4 * 9


def test_chat_logprobs(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "fake",
        "messages": MESSAGES,
        "max_tokens": 40,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = client.chat.completions.create(**asked).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    assert len(whole.content) == 40
    entry = whole.content[0]
    assert bytes(entry.bytes or []).decode(errors="replace") == entry.token
    assert entry.logprob == -0.25
    assert [top.logprob for top in entry.top_logprobs] == [-0.25, -1.25, -9999.0]
    streamed = [
        position
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for position in chunk.choices[0].logprobs.content or []
    ]
    dumps = [position.model_dump() for position in streamed]
    assert dumps == [position.model_dump() for position in whole.content]


@pytest.mark.parametrize(
    ("prompt", "num_prompts"),
    [("one", 1), ([5, 6, 7], 1), (["one", "two", "three"], 3), ([[5, 6], [7], [8, 9], [9]], 4)],
)
def test_completions(
    client: openai.OpenAI, server: RunningServer, prompt: Any, num_prompts: int
) -> None:
    asked: dict[str, Any] = {"model": "fake", "prompt": prompt, "max_tokens": 60}
    server.engine.delay = 0.001
    whole = client.completions.create(**asked)
    assert whole.id.startswith("cmpl-")
    assert whole.object == "text_completion"
    assert [choice.index for choice in whole.choices] == list(range(num_prompts))
    assert all(choice.finish_reason == "length" for choice in whole.choices)
    assert server.engine.most_open == num_prompts
    assert whole.usage is not None
    num_prompt_tokens = sum(len(ids) for ids, _ in server.engine.requests.values())
    assert whole.usage.prompt_tokens == num_prompt_tokens
    assert whole.usage.completion_tokens == 60 * num_prompts

    texts = [""] * num_prompts
    order = []
    usage = None
    for chunk in client.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            order.append(choice.index)
    assert texts == [choice.text for choice in whole.choices]
    assert usage == whole.usage
    if num_prompts > 1:
        assert order != sorted(order), "streams of several prompts interleave"


def test_completion_logprobs(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "fake",
        "prompt": "a\x00b",
        "max_tokens": 8,
        "logprobs": 2,
        "seed": 36,
    }
    choice = client.completions.create(**asked).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == choice.text
    assert logprobs.text_offset == list(range(8))
    assert logprobs.token_logprobs == [-0.25] * 8
    assert logprobs.top_logprobs is not None
    assert all(len(tops) == 2 for tops in logprobs.top_logprobs)
    streamed: dict[str, list[Any]] = {}
    for chunk in client.completions.create(**asked, stream=True):
        if chunk.choices[0].logprobs:
            for name, values in chunk.choices[0].logprobs.model_dump().items():
                streamed.setdefault(name, []).extend(values)
    assert streamed == logprobs.model_dump()


@pytest.mark.parametrize("stream", [False, True])
def test_stop(client: openai.OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "fake", "prompt": "x", "max_tokens": 200, "stop": ["fox"]}
    if stream:
        choices = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
        text = "".join(choice.text for choice in choices)
        last = choices[-1]
    else:
        last = client.completions.create(**asked).choices[0]
        text = last.text
    assert text.endswith("brown ")
    assert last.finish_reason == "stop"
    assert last.model_extra == {"stop_reason": "fox"}


async def test_async_client(server: RunningServer) -> None:
    async with (
        httpx.AsyncClient(trust_env=False, verify=False) as http,
        openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="unused", http_client=http
        ) as client,
    ):
        whole = await client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=30)
        stream = await client.chat.completions.create(
            model="fake", messages=MESSAGES, max_tokens=30, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


def test_errors_reach_the_client_as_exceptions(
    client: openai.OpenAI, server: RunningServer
) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="fake", messages=MESSAGES, temperature=-1)
    assert bad.value.param == "temperature"
    assert bad.value.type == "invalid_request_error"
    server.engine.fail_at = 4
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model="fake", messages=MESSAGES)
    assert "secret" not in str(failed.value)
    with pytest.raises(openai.APIError, match="engine failed"):
        list(client.chat.completions.create(model="fake", messages=MESSAGES, stream=True))
    server.engine.fail_at = None
    server.assert_serves()
