"""What the fake backend says, in the shape of each route, whole and as events."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

CREATED = 1_700_000_000


@dataclass
class Seen:
    """One request as it came. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    raw_headers: list[tuple[str, str]]
    body: dict[str, Any]

    @property
    def model(self) -> str:
        """As the body names it."""
        return str(self.body.get("model", ""))


@dataclass
class Answer:
    """What a model says.

    Attributes:
        tokens: pieces of the text, an event each in a stream.
        logprob: of each token, where the request asks for them.
        num_prompt, num_cached: tokens that usage tells; the output's are counted.
    """

    tokens: tuple[str, ...] = ("The", " answer", " is", " 42", ".")
    logprob: float = -0.1
    num_prompt: int = 20
    num_cached: int = 8
    finish_reason: str = "stop"

    @property
    def text(self) -> str:
        """The whole of it."""
        return "".join(self.tokens)


class RouteAnswer:
    """The answer to one request in its route's shape."""

    def __init__(self, says: Answer, seen: Seen, *, is_octavo: bool) -> None:
        self.path = seen.path.rpartition("/v1")[2] or seen.path
        self.body = seen.body
        self.model = seen.model
        self.says = says
        self.num_output = len(self.says.tokens)
        self.cost: dict[str, Any] = {}
        if is_octavo and seen.headers.get("x-octavo-include-cost") == "1":
            self.cost = {"gpu_seconds": 0.012345678, "cost": 0.000008573, "currency": "USD"}
        self.num_prompt, self.num_cached = self.says.num_prompt, self.says.num_cached
        self.base = {"id": "fake-1", "created": CREATED, "model": self.model}

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_output,
            "total_tokens": self.num_prompt + self.num_output,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
            **self.cost,
        }

    @property
    def response_usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.num_prompt,
            "input_tokens_details": {"cached_tokens": self.num_cached},
            "output_tokens": self.num_output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.num_prompt + self.num_output,
            **self.cost,
        }

    @property
    def message_usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.num_prompt - self.num_cached,
            "output_tokens": self.num_output,
            "cache_read_input_tokens": self.num_cached,
            "cache_creation_input_tokens": 0,
            **self.cost,
        }

    def logprobs(self, tokens: tuple[str, ...]) -> dict[str, Any] | None:
        if not self.body.get("logprobs"):
            return None
        made = [
            {
                "token": token,
                "logprob": self.says.logprob,
                "bytes": list(token.encode()),
                "top_logprobs": [],
            }
            for token in tokens
        ]
        return {"content": made}

    def answer(self) -> dict[str, Any]:
        """Not streamed."""
        says = self.says
        if self.path == "/chat/completions":
            message = {"role": "assistant", "content": says.text}
            choice = {
                "index": 0,
                "message": message,
                "logprobs": self.logprobs(says.tokens),
                "finish_reason": says.finish_reason,
            }
            return self.base | {
                "object": "chat.completion",
                "choices": [choice],
                "usage": self.usage,
            }
        if self.path == "/completions":
            choice = {
                "index": 0,
                "text": says.text,
                "logprobs": None,
                "finish_reason": says.finish_reason,
            }
            return self.base | {
                "object": "text_completion",
                "choices": [choice],
                "usage": self.usage,
            }
        if self.path == "/messages":
            return {
                "id": "msg_fake",
                "type": "message",
                "role": "assistant",
                "model": self.model,
                "content": [{"type": "text", "text": says.text}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": self.message_usage,
            }
        if self.path == "/responses":
            return self.response("completed")
        usage = {"prompt_tokens": self.num_prompt, "total_tokens": self.num_prompt, **self.cost}
        if self.path == "/embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [0.25, 0.5, -1.0]}]
            return self.base | {"object": "list", "data": data, "usage": usage}
        if self.path == "/score":
            data = [{"object": "score", "index": 0, "score": 0.75}]
            return self.base | {"object": "list", "data": data, "usage": usage}
        results = [{"index": 0, "relevance_score": 0.75, "document": {"text": "a"}}]
        return self.base | {
            "results": results,
            "usage": {"total_tokens": self.num_prompt, **self.cost},
        }

    def response(self, status: str) -> dict[str, Any]:
        output = []
        if status == "completed":
            text = {"type": "output_text", "text": self.says.text, "annotations": []}
            output = [
                {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "status": status,
                    "content": [text],
                }
            ]
        return {
            "id": "resp_fake",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "model": self.model,
            "output": output,
            "usage": self.response_usage if status == "completed" else None,
        }

    def events(self) -> list[bytes]:
        """Streamed."""
        if self.path == "/messages":
            return [_named(event["type"], event) for event in self._message_events()]
        if self.path == "/responses":
            return [_named(event["type"], event) for event in self._response_events()]
        is_chat = self.path == "/chat/completions"
        options = self.body.get("stream_options") or {}
        base: dict[str, Any] = self.base | {
            "object": "chat.completion.chunk" if is_chat else "text_completion"
        }
        if options.get("include_usage"):
            base["usage"] = None
        chunks: list[dict[str, Any]] = []
        for token in self.says.tokens:
            choice: dict[str, Any] = {"index": 0, "finish_reason": None}
            if is_chat:
                choice |= {"delta": {"content": token}, "logprobs": self.logprobs((token,))}
            else:
                choice |= {"text": token, "logprobs": None}
            chunks.append(base | {"choices": [choice]})
        end = {"delta": {}} if is_chat else {"text": ""}
        choice = {"index": 0, "finish_reason": self.says.finish_reason, **end}
        chunks.append(base | {"choices": [choice]})
        if options.get("include_usage"):
            chunks.append(base | {"choices": [], "usage": self.usage})
        events = [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks]
        return [*events, b"data: [DONE]\n\n"]

    def _message_events(self) -> list[dict[str, Any]]:
        start = self.answer() | {"content": [], "stop_reason": None}
        start["usage"] = self.message_usage | {"output_tokens": 1}
        block = {"type": "text", "text": ""}
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": start},
            {"type": "content_block_start", "index": 0, "content_block": block},
        ]
        for token in self.says.tokens:
            delta = {"type": "text_delta", "text": token}
            events.append({"type": "content_block_delta", "index": 0, "delta": delta})
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        usage = {"output_tokens": self.num_output, **self.cost}
        return [
            *events,
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": end, "usage": usage},
            {"type": "message_stop"},
        ]

    def _response_events(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": self.response("in_progress")}
        ]
        where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        events += [
            {"type": "response.output_text.delta", **where, "delta": token}
            for token in self.says.tokens
        ]
        events.append({"type": "response.completed", "response": self.response("completed")})
        return [event | {"sequence_number": number} for number, event in enumerate(events)]


def _named(name: str, value: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps(value).encode())
