"""Answers on their way to a client whose connection is slow, or an event at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from octavo.errors import UpstreamError
from octavo.gateway.model import Call, Target, Tier, Tokens
from octavo.gateway.relay import NO_CEILING, Ceiling, Relay
from octavo.server.dialect import OPENAI
from octavo.server.scope import Exchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

CALL = Call(
    request_id="r1", arrived=0.0, route="chat", path="/v1/chat/completions", model="m", body={}
)
COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def token(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: %b\n\n" % json.dumps({"id": "c1", "model": "m", "choices": [choice]}).encode()


class Answer:
    """An outcome that is here already."""

    target = Target("b", "m")
    tier = Tier(name="t", targets=(Target("b", "m"),))
    headers: dict[str, str] = {}
    status = 200
    finish_reason = ""
    is_whole = False

    def __init__(self, *batches: Sequence[bytes], body: bytes = b"", breaks: bool = False) -> None:
        self.content_type = "text/event-stream" if batches else "application/json"
        self._batches = batches
        self._body = body
        self._breaks = breaks
        self.num_given = 0
        self.is_closed = False

    @property
    def tokens(self) -> Tokens:
        return Tokens(output=self.num_given)

    async def read(self) -> bytes:
        return self._body

    async def batches(self) -> AsyncIterator[Sequence[bytes]]:
        try:
            for batch in self._batches:
                self.num_given += sum(1 for event in batch if event != COMMENT)
                yield batch
            if self._breaks:
                raise UpstreamError("backend b broke off", code="upstream_broken")
        finally:
            self.is_closed = True


class Wire:
    """What a server does with an answer; every `every`th piece can be written at once."""

    def __init__(self, every: int) -> None:
        self.messages: list[dict[str, Any]] = []
        self._every = every
        self._num = 0

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    def write(self, piece: bytes) -> bool:
        self._num += 1
        if self._every and self._num % self._every == 0:
            self.messages.append({"type": "http.response.body", "body": piece, "more_body": True})
            return True
        return False

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


async def relayed(
    answer: Answer, ceiling: Ceiling = NO_CEILING, every: int = 1
) -> tuple[Relay, Wire]:
    wire = Wire(every)
    exchange = Exchange("r1", wire.send, wire.write)
    relay = Relay(CALL, exchange, OPENAI, wire.send)
    await relay.run(answer, [(b"x-a", b"1")], ceiling)  # type: ignore[arg-type]
    return relay, wire


@pytest.mark.parametrize("every", [0, 1, 2])
async def test_events_come_in_order_whoever_writes_them(every: int) -> None:
    events = [token(str(number)) for number in range(20)]
    answer = Answer(events[:1], events[1:9], events[9:], [DONE])
    relay, wire = await relayed(answer, every=every)
    assert wire.body == b"".join((*events, DONE))
    assert wire.messages[0]["headers"][-1] == (b"x-a", b"1")
    assert [m.get("more_body") for m in wire.messages[1:]] == [True] * 4 + [False]
    assert relay.status == "ok"
    assert answer.is_closed


async def test_a_body_is_sent_with_its_length() -> None:
    _, wire = await relayed(Answer(body=b'{"a": 1}'))
    assert (b"content-length", b"8") in wire.messages[0]["headers"]
    assert wire.body == b'{"a": 1}'


async def test_what_breaks_off_is_told_as_an_event() -> None:
    relay, wire = await relayed(Answer([token("a")], breaks=True))
    assert wire.body.startswith(token("a"))
    assert b"backend b broke off" in wire.body
    assert wire.body.endswith(DONE)
    assert (relay.status, relay.reason) == ("error", "backend b broke off")


@pytest.mark.parametrize(
    "ceiling", [Ceiling(5, 1 << 62), Ceiling(1 << 62, 4)], ids=["tokens", "events"]
)
async def test_a_stream_is_cut_at_the_first_ceiling(ceiling: Ceiling) -> None:
    answer = Answer(*([token(str(number))] for number in range(9)), [DONE])
    relay, wire = await relayed(answer, ceiling)
    text = wire.body.decode()
    assert '"content": "4"' in text
    assert '"content": "5"' not in text
    assert text.count('"finish_reason":"budget"') == 1
    assert text.endswith("data: [DONE]\n\n")
    assert text.count("[DONE]") == 1
    assert relay.status == "over_budget"
    assert answer.is_closed
    assert wire.messages[-1]["more_body"] is False


async def test_comments_are_no_tokens() -> None:
    batches = [[token("a")], *([COMMENT] for _ in range(50)), [token("b")], [DONE]]
    relay, wire = await relayed(Answer(*batches), Ceiling(1 << 62, 4))
    assert relay.status == "ok"
    assert wire.body.count(COMMENT) == 50


async def test_an_answer_of_nothing_ends() -> None:
    relay, wire = await relayed(Answer([]))
    assert wire.body == b""
    assert relay.status == "ok"
