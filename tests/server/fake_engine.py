"""An engine without a model, and a tokenizer without a vocabulary file, for tests of the server.

The tokenizer's tokens are bytes: id = byte + 3; 0 is `<unk>`, 1 `<s>`, 2 `</s>`. The engine answers
with a text that depends on the prompt and the seed only, one token per delta unless told otherwise.
"""

from __future__ import annotations

import asyncio
import math
from array import array
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.engine.admission import check_options, check_pooling
from octavo.errors import EngineUnavailableError, InvalidRequestError
from octavo.types import (
    Charge,
    Delta,
    EngineInfo,
    EngineStats,
    KVCacheLayout,
    Pooled,
    PoolingInfo,
    PoolingParams,
    PositionLogprobs,
    RequestOptions,
    SamplingParams,
    TokenLogprob,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

SPECIAL = ("<unk>", "<s>", "</s>")
NUM_SPECIAL = len(SPECIAL)
EOS = 2
VOCAB_SIZE = 256 + NUM_SPECIAL
WORDS = "The quick brown fox — naïve, 世界, 🙂 — jumps over the lazy dog. "


class FakeTemplate:
    """Roles in angle brackets; refuses a conversation that does not end with the user."""

    def __init__(self, *sources: str) -> None:
        self.sources = sources
        self.calls: list[dict[str, Any]] = []

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        if tools is not None:
            kwargs["tools"] = tools
        self.calls.append(
            {
                "messages": messages,
                "add_generation_prompt": add_generation_prompt,
                "continue_final_message": continue_final_message,
                **kwargs,
            }
        )
        if messages[0]["content"] == "refuse me":
            raise InvalidRequestError("the template refuses", param="messages")
        text = "".join(f"<{m['role']}>{m['content']}\n" for m in messages)
        if continue_final_message:
            return text[:-1]
        return text + ("<assistant>" if add_generation_prompt else "")


class FakeTokenizer:
    def __init__(self, *, has_template: bool = True) -> None:
        self.vocab_size = VOCAB_SIZE
        self.special_token_ids = frozenset(range(NUM_SPECIAL))
        self.eos_token_ids = frozenset({EOS})
        self.chat_template = FakeTemplate() if has_template else None

    def compile_chat_template(self, source: str) -> FakeTemplate:
        if "{%" in source and "%}" not in source:
            raise InvalidRequestError("chat_template does not compile", param="chat_template")
        return FakeTemplate(source)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = [byte + NUM_SPECIAL for byte in text.encode()]
        return [1, *ids] if add_special_tokens else ids

    def encode_texts(
        self,
        first: str,
        second: str | None = None,
        *,
        add_special_tokens: bool = True,
        max_len: int | None = None,
    ) -> tuple[list[int], int | None]:
        ids = self.encode(first, add_special_tokens=add_special_tokens)
        if second is None:
            return ids[:max_len], None
        return (ids + self.encode(second))[:max_len], len(ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        kept = [i for i in ids if i >= NUM_SPECIAL or not skip_special_tokens]
        return b"".join(self.token_bytes(i) for i in kept).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < NUM_SPECIAL:
            return SPECIAL[token_id].encode()
        return bytes([token_id - NUM_SPECIAL])


_NO_OPTIONS = RequestOptions()
NUM_DIMENSIONS = 4


def fake_vector(token_ids: Sequence[int], params: PoolingParams) -> bytes:
    """What `FakeEngine.pool` makes of tokens: counts of their residues, of length 1 or cut."""
    if params.task == "score":
        return array("f", [len(token_ids) / 1024]).tobytes()
    if params.task == "classify":
        high = sum(token_ids) % 101 / 100
        return array("f", [1 - high, high]).tobytes()
    counts = [1.0 + sum(i % NUM_DIMENSIONS == k for i in token_ids) for k in range(NUM_DIMENSIONS)]
    counts = counts[: params.dimensions]
    norm = 1.0 if params.is_activated is False else math.hypot(*counts)
    return array("f", [count / norm for count in counts]).tobytes()


class FakeEngine:
    """See the module. What reached it is in `prompts`, `params`, `aborted`, `finished`.

    Attributes:
        delay: seconds before each delta.
        first_delay: seconds before the first one.
        tokens_per_delta: how many tokens come at a time.
        pieces: the answer's texts, one for each delta, instead of the usual answer.
        pieces_end: the reason of their end.
        fail_at: number of tokens after which `failure` happens.
        failure: an exception to raise, or a message for a last delta with `error`.
        dies: raise EngineUnavailableError from every request.
        num_open: generators that are neither at their end nor closed.
        listener: told of a charge of 1 us per token of the prompt and 2 us per token of the output
            when a request ends, however it does.
    """

    def __init__(self, *, max_model_len: int = 2048) -> None:
        self.info = EngineInfo(
            architecture="FakeForCausalLM",
            dtype="float32",
            device="cpu",
            vocab_size=VOCAB_SIZE,
            max_model_len=max_model_len,
            kv_cache=KVCacheLayout(num_blocks=1, block_size=1, bytes_per_block=1),
            startup_s={},
            scheduling_policy="priority",
            tasks=("generate", "embed", "classify", "score"),
            pooling=PoolingInfo(
                pooling_type="mean",
                num_dimensions=NUM_DIMENSIONS,
                is_normalized=True,
                is_matryoshka=True,
                labels=["low", "high"],
            ),
        )
        self.stats = EngineStats()
        self.is_alive = True
        self.delay = 0.0
        self.first_delay = 0.0
        self.tokens_per_delta = 1
        self.pieces: list[str] | None = None
        self.pieces_end: Any = "stop"
        self.fail_at: int | None = None
        self.failure: Exception | str = "boom at /secret/path"
        self.num_open = 0
        self.most_open = 0
        self.requests: dict[str, tuple[list[int], SamplingParams]] = {}
        self.options: dict[str, RequestOptions] = {}
        self.aborted: list[str] = []
        self.finished: list[str] = []
        self.pooled: dict[str, tuple[list[int], PoolingParams, RequestOptions]] = {}
        self.listener: Callable[[str, Charge], None] = lambda request_id, charge: None

    def listen_for_charges(self, listener: Callable[[str, Charge], None]) -> None:
        self.listener = listener

    def check_health(self) -> None:
        if not self.is_alive:
            raise EngineUnavailableError("the engine is dead", code="engine_dead", retry_after_s=4)

    def answer(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> list[int]:
        """The tokens of the answer, without end."""
        shift = (sum(prompt_token_ids) * 31 + (params.seed or 0)) % len(WORDS)
        text = WORDS[shift:] + WORDS[:shift]
        return [byte + NUM_SPECIAL for byte in (text * (1 + 1024 // len(text))).encode()]

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = _NO_OPTIONS,
    ) -> AsyncIterator[Delta]:
        self.check_health()
        check_options(options, self.info)
        assert request_id not in self.requests
        assert prompt_token_ids
        assert all(0 <= i < VOCAB_SIZE for i in prompt_token_ids)
        self.requests[request_id] = (list(prompt_token_ids), params)
        self.options[request_id] = options
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        charge = Charge(prefill_ns=1000 * len(prompt_token_ids))
        try:
            async for delta in self._deltas(list(prompt_token_ids), params):
                charge = Charge(charge.prefill_ns, charge.decode_ns + 2000 * len(delta.token_ids))
                if delta.finish_reason is not None:
                    self.finished.append(request_id)
                    self.listener(request_id, charge)
                    delta.charge = charge
                yield delta
        finally:
            self.num_open -= 1
            if request_id not in self.finished:
                self.listener(request_id, charge)
            if request_id not in self.finished:
                self.aborted.append(request_id)

    async def _deltas(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Delta]:
        if self.pieces is not None:
            num_output = 0
            told = self._prompt_logprobs(prompt, params)
            for index, piece in enumerate(self.pieces):
                await asyncio.sleep(self.delay)
                tokens = [byte + NUM_SPECIAL for byte in piece.encode()]
                num_output += len(tokens)
                yield Delta(
                    text=piece,
                    token_ids=tokens,
                    logprobs=self._logprobs(tokens, params),
                    finish_reason=self.pieces_end if index == len(self.pieces) - 1 else None,
                    num_prompt_tokens=len(prompt),
                    num_output_tokens=num_output,
                    prompt_logprobs=told,
                )
                told = []
            return
        limit = params.max_tokens or 1
        tokens = (self.answer(prompt, params) * (1 + limit // 1024))[:limit]
        stop: str | int | None = None
        reason: Any = "length"
        for index, token_id in enumerate(tokens):
            so_far = bytes(t - NUM_SPECIAL for t in tokens[: index + 1]).decode(errors="ignore")
            hit = [s for s in params.stop_strings if s in so_far]
            if hit or token_id in params.stop_token_ids:
                tokens, reason = tokens[: index + 1], "stop"
                stop = hit[0] if hit else token_id
                break
        data = bytes(t - NUM_SPECIAL for t in tokens)
        whole = data.decode(errors="ignore")
        if isinstance(stop, str):
            end = whole.index(stop)
            whole = whole[: end + len(stop) * params.include_stop_str_in_output]
        told = self._prompt_logprobs(prompt, params)
        num_sent = 0
        await asyncio.sleep(self.first_delay)
        for start in range(0, len(tokens), self.tokens_per_delta):
            await asyncio.sleep(self.delay)
            if self.fail_at is not None and start >= self.fail_at:
                if isinstance(self.failure, Exception):
                    raise type(self.failure)(*self.failure.args)
                yield Delta(finish_reason="error", error=self.failure)
                return
            end = start + self.tokens_per_delta
            is_last = end >= len(tokens)
            known = data[:end].decode(errors="ignore")
            text = whole if is_last else known[: max(0, len(whole) - 8)]
            yield Delta(
                text=text[num_sent:],
                token_ids=tokens[start:end],
                logprobs=self._logprobs(tokens[start:end], params),
                finish_reason=reason if is_last else None,
                stop_reason=stop if is_last else None,
                num_prompt_tokens=len(prompt),
                num_output_tokens=min(end, len(tokens)),
                num_cached_tokens=len(prompt) // 2,
                prompt_logprobs=told,
            )
            told = []
            num_sent = max(num_sent, len(text))

    @classmethod
    def _prompt_logprobs(
        cls, prompt: Sequence[int], params: SamplingParams
    ) -> list[PositionLogprobs]:
        """What comes with the first delta."""
        if params.prompt_logprobs is None:
            return []
        return cls._logprobs(
            prompt[1:], msgspec.structs.replace(params, logprobs=params.prompt_logprobs)
        )

    @staticmethod
    def _logprobs(tokens: Sequence[int], params: SamplingParams) -> list[PositionLogprobs]:
        if params.logprobs is None:
            return []
        return [
            PositionLogprobs(
                sampled=TokenLogprob(t, -0.25, 1),
                top=[
                    TokenLogprob((t + k) % VOCAB_SIZE, -0.25 - k if k < 2 else -math.inf, k + 1)
                    for k in range(params.logprobs)
                ],
            )
            for t in tokens
        ]

    async def pool(
        self,
        prompt_token_ids: Sequence[int],
        params: PoolingParams,
        *,
        request_id: str,
        options: RequestOptions = _NO_OPTIONS,
    ) -> Pooled:
        """A vector that depends on the tokens; `delay` seconds late."""
        self.check_health()
        check_options(options, self.info)
        check_pooling(list(prompt_token_ids), params, self.info)
        assert request_id not in self.pooled
        self.pooled[request_id] = (list(prompt_token_ids), params, options)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        charge = Charge(prefill_ns=1000 * len(prompt_token_ids))
        try:
            timeout = math.inf if options.timeout_s is None else options.timeout_s
            await asyncio.sleep(min(self.delay, timeout))
            if timeout < self.delay:
                self.finished.append(request_id)
                return Pooled(finish_reason="timeout")
            if self.fail_at is not None:
                if isinstance(self.failure, Exception):
                    raise type(self.failure)(*self.failure.args)
                return Pooled(finish_reason="error", error=self.failure)
            self.finished.append(request_id)
            return Pooled(vector=fake_vector(prompt_token_ids, params), charge=charge)
        finally:
            self.num_open -= 1
            self.listener(request_id, charge)
            if request_id not in self.finished:
                self.aborted.append(request_id)

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def close(self) -> None:
        self.is_alive = False
