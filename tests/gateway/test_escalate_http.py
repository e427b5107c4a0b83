"""Escalation through the whole gateway, seen by the official clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest

from tests.gateway.fake_answers import Answer
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.running import QUICK, Running, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

UNSURE = Answer(tokens=("Perhaps", " 41"), logprob=-2.0, num_prompt=10, num_cached=0)
SORRY = Answer(tokens=("I cannot", " help with that"), num_prompt=10, num_cached=0)
GOOD = Answer(tokens=("It", " is", " 42", "."), logprob=-0.1, num_prompt=10, num_cached=0)

KEY = "a-key-of-the-tests-0123456789"
CONFIG = """
backends:
  fake:
    url: {url}
    models:
      unsure: {{price: {{input: 1, output: 2}}}}
      sorry: {{price: {{input: 1, output: 2}}}}
      sure: {{price: {{input: 1, output: 2}}}}
      cloud: {{price: {{input: 10, output: 20}}}}
{quick}
keys:
  inline:
    - {{id: k1, key: {key}}}
judges:
  answers: {{kind: refusal}}
  confident: {{kind: logprob, mean: -0.5, on_error: pass}}
  good: {{kind: all, of: [answers, confident]}}
tiers:
  unsure: {{targets: [fake/unsure], judge: good}}
  sorry: {{targets: [fake/sorry], judge: good}}
  sure: {{targets: [fake/sure], judge: good}}
  cloud: {{targets: [fake/cloud]}}
models:
  from-unsure: {{tiers: [unsure, cloud]}}
  from-sorry: {{tiers: [sorry, cloud]}}
  from-sure: {{tiers: [sure, cloud]}}
"""


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    answers = {"unsure": UNSURE, "sorry": SORRY, "sure": GOOD, "cloud": GOOD}
    async with FakeUpstream(answers=answers) as fake:
        text = CONFIG.format(url=fake.url, key=KEY, quick=QUICK.strip("\n"))
        async with running(tmp_path, text) as gateway:
            gateway.client.headers["authorization"] = f"Bearer {KEY}"
            yield gateway


CASES = [("from-unsure", "escalated", 2), ("from-sorry", "escalated", 2), ("from-sure", None, 1)]


@pytest.mark.parametrize(("model", "header", "num_attempts"), CASES)
async def test_chats_by_openais_client(
    gateway: Running, model: str, header: str | None, num_attempts: int
) -> None:
    counted = gateway.counted()
    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0)
    messages: Any = [{"role": "user", "content": "What is it?"}]
    async with client:
        raw = await client.chat.completions.with_raw_response.create(
            model=model, messages=messages, max_tokens=9
        )
        assert raw.headers.get("x-octavo-escalation") == header
        answer = raw.parse()
        assert answer.choices[0].message.content == GOOD.text
        assert answer.choices[0].logprobs is None
        stream = await client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == GOOD.text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(GOOD.tokens)
    await gateway.idle()
    counted.check(2)
    for _, _, attempts in counted.records:
        assert len(attempts) == num_attempts
        assert attempts[-1].status == "ok"
    costs = [used.cost_nano for used in counted.reservations if used is not None]
    cloud, small = 10 * 10_000 + 4 * 20_000, 10 * 1000
    cheap = {"from-unsure": small + 2 * 2000, "from-sorry": small + 2 * 2000}
    expected = small + 4 * 2000 if model == "from-sure" else cheap[model] + cloud
    assert costs == [expected, expected]
    assert all(worst.cost_nano >= expected for worst in counted.worst)


async def test_messages_by_anthropics_client(gateway: Running) -> None:
    """They have no log-probabilities: that judge passes them, as it is told to."""
    client = anthropic.AsyncAnthropic(base_url=gateway.url, api_key=KEY, max_retries=0)
    messages: Any = [{"role": "user", "content": "What is it?"}]
    async with (
        client,
        client.messages.stream(model="from-sorry", messages=messages, max_tokens=9) as stream,
    ):
        answer = await stream.get_final_message()
    assert answer.content[0].text == GOOD.text  # type: ignore[union-attr]
    assert answer.usage.output_tokens == len(GOOD.tokens)
