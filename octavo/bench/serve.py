"""The load loop: probes the server, sends the requests when they are due, gathers the outcomes.

Two kinds of load. A closed loop keeps `concurrency` requests in flight; an open loop sends them at
their arrival times whether or not earlier ones have ended, which is what users do. Knows nothing of
terminals: progress goes to a callback.
"""

from __future__ import annotations

import asyncio
import datetime
import math
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.bench.client import Endpoint, OpenAIClient, Outcome
from octavo.bench.report import ServeReport, Setup, summarize
from octavo.bench.workload import (
    DEFAULT_VOCAB_SIZE,
    Ask,
    Length,
    PromptFormat,
    TextScale,
    arrivals,
    load_dataset,
    random_asks,
    random_ids,
    random_text,
    stream_of,
)
from octavo.errors import ConfigError
from octavo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

Began = Callable[[int], None]
"""Called with the number of requests when the measured part begins."""
Observer = Callable[[Outcome], None]
"""Called in the loop after each measured request; must return quickly."""

_PROBE_WORDS = (32, 160)
_PROBE_TOKENS = 4


class ServeBench(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. Each field is the flag of its name of `octavo bench serve`.

    Attributes:
        concurrency: most requests in flight; None: no bound (needs a rate).
        rate: arrivals per second; None: closed loop.
        dataset: None: random prompts.
        num_prompts: None: the whole dataset, or 100 random prompts.
        ignore_eos: None: on for random prompts where the server takes it.
        seed: None: drawn, so that two runs share no prompts.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    endpoint: Endpoint = "completions"
    concurrency: int | None = None
    rate: float | None = None
    burstiness: float = 1.0
    dataset: Path | None = None
    num_prompts: int | None = None
    input_len: Length = Length(128, 128)
    output_len: Length = Length(128, 128)
    prefix_len: int = 0
    prompt_format: PromptFormat = "ids"
    vocab_size: int = DEFAULT_VOCAB_SIZE
    warmup: int = 1
    ignore_eos: bool | None = None
    temperature: float = 0.0
    extra_body: dict[str, Any] = {}
    timeout_s: float = 600.0
    seed: int | None = None
    slo_ms: dict[str, float] = {}

    def __post_init__(self) -> None:
        if self.concurrency is None and self.rate is None:
            raise ConfigError("give --concurrency for a closed loop or --rate for arrivals")
        if self.burstiness != 1 and self.rate is None:
            raise ConfigError("--burstiness is of arrivals: give --rate too")
        if self.endpoint == "chat" and self.dataset is None and self.prompt_format == "ids":
            raise ConfigError("the chat endpoint takes no token ids: --prompt-format text")
        least = {
            "--concurrency": (self.concurrency, 1),
            "--num-prompts": (self.num_prompts, 1),
            "--prefix-len": (self.prefix_len, 0),
            "--warmup": (self.warmup, 0),
        }
        for flag, (value, bound) in least.items():
            if value is not None and value < bound:
                raise ConfigError(f"{flag} must be at least {bound}, got {value}")
        above = {"--rate": self.rate, "--burstiness": self.burstiness, "--timeout": self.timeout_s}
        for flag, number in above.items():
            if number is not None and not 0 < number < math.inf:
                raise ConfigError(f"{flag} must be a number above 0, got {number:g}")


@dataclass
class _Dialect:
    """How this server wants its requests, found by the probe."""

    model: str
    ignore_eos: bool
    include_usage: bool = True
    scale: TextScale = field(default_factory=TextScale)
    notes: list[str] = field(default_factory=list)


class _Run:
    """One benchmark against one server."""

    def __init__(
        self, bench: ServeBench, client: OpenAIClient, began: Began, observer: Observer
    ) -> None:
        self._began = began
        self._bench = bench
        self._client = client
        self._observer = observer
        self._seed = bench.seed if bench.seed is not None else secrets.randbits(48)
        self._format = bench.prompt_format
        self._outcomes: list[Outcome] = []
        self._lags: list[float] = []
        self._made_input_tokens = 0

    async def run(self) -> ServeReport:
        bench = self._bench
        dialect = await self._probe(bench.model or await self._find_model())
        asks = self._asks(dialect)
        bodies = [self._body(ask, dialect) for ask in asks]
        await self._warm_up(dialect)
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._began(len(asks))
        cpu_s = time.process_time()
        try:
            await (
                self._open(asks, bodies) if bench.rate is not None else self._closed(asks, bodies)
            )
        except asyncio.CancelledError:
            # Ctrl-C, once: report what there is. The task group has closed what was in flight.
            dialect.notes.append("interrupted: the figures are of a part of the run")
        cpu_s = time.process_time() - cpu_s
        setup = Setup(
            url=self._client.url,
            endpoint=bench.endpoint,
            model=dialect.model,
            dataset=str(bench.dataset or "random"),
            prompt_format="file" if bench.dataset else self._format,
            num_prompts=len(asks),
            input_len=None if bench.dataset else str(bench.input_len),
            output_len=str(bench.output_len),
            prefix_len=bench.prefix_len,
            concurrency=bench.concurrency,
            rate=bench.rate,
            burstiness=bench.burstiness,
            warmup=bench.warmup,
            ignore_eos=dialect.ignore_eos,
            temperature=bench.temperature,
            seed=self._seed,
            extra_body=bench.extra_body,
        )
        return summarize(
            setup,
            self._outcomes,
            version=__version__,
            created=created,
            made_input_tokens=self._made_input_tokens,
            send_lags=self._lags,
            cpu_s=cpu_s,
            slo_ms=bench.slo_ms,
            notes=dialect.notes,
        )

    # Before the run

    async def _find_model(self) -> str:
        models = await self._client.models()
        if not models:
            raise ConfigError(f"{self._client.url} serves no model; give --model")
        return models[0]

    def _body(self, ask: Ask, dialect: _Dialect) -> bytes:
        body: dict[str, Any] = {
            "model": dialect.model,
            "max_tokens": ask.max_tokens,
            "temperature": self._bench.temperature,
            "stream": True,
        }
        if self._bench.endpoint == "chat":
            if isinstance(ask.prompt, list) and ask.prompt and isinstance(ask.prompt[0], int):
                raise ConfigError("the chat endpoint takes no token ids")
            is_text = isinstance(ask.prompt, str)
            body["messages"] = [{"role": "user", "content": ask.prompt}] if is_text else ask.prompt
        elif isinstance(ask.prompt, list) and ask.prompt and isinstance(ask.prompt[0], dict):
            raise ConfigError("chat messages need --endpoint chat")
        else:
            body["prompt"] = ask.prompt
        if dialect.include_usage:
            body["stream_options"] = {"include_usage": True}
        if dialect.ignore_eos:
            body["ignore_eos"] = True
        return msgspec.json.encode(body | self._bench.extra_body)

    async def _send(self, ask: Ask, dialect: _Dialect) -> Outcome:
        return await self._client.stream(self._bench.endpoint, self._body(ask, dialect))

    async def _probe(self, model: str) -> _Dialect:
        """Learn what the server takes, from a few short requests that nobody measures.

        Raises:
            ConfigError: it refuses them all.
        """
        bench = self._bench
        wants_eos = bench.ignore_eos if bench.ignore_eos is not None else bench.dataset is None
        may_drop_eos = wants_eos and bench.ignore_eos is None
        rng = stream_of(secrets.randbits(48), "probe")
        prompt: str | list[int] = random_text(rng, _PROBE_WORDS[0])
        if bench.dataset is None and self._format == "ids":
            prompt = random_ids(rng, _PROBE_WORDS[0], bench.vocab_size)
        ask = Ask(prompt=prompt, max_tokens=_PROBE_TOKENS)
        outcome = Outcome()
        dialect = _Dialect(model=model, ignore_eos=wants_eos)
        for include_usage in (True, False):
            for ignore_eos in (True, False) if may_drop_eos else (wants_eos,):
                dialect = _Dialect(model=model, ignore_eos=ignore_eos, include_usage=include_usage)
                outcome = await self._send(ask, dialect)
                if outcome.status not in (400, 422):
                    break
            if outcome.status not in (400, 422):
                break
        if outcome.error is not None:
            hint = ""
            if outcome.status in (400, 422) and not isinstance(prompt, str):
                hint = " (token ids were sent: --prompt-format text or --vocab-size may help)"
            raise ConfigError(f"{self._client.url} failed a test request: {outcome.error}{hint}")
        if wants_eos and not dialect.ignore_eos:
            dialect.notes.append("the server does not take ignore_eos: answers may end early")
        if not dialect.include_usage:
            dialect.notes.append("the server does not take stream_options.include_usage")
        if bench.dataset is None and self._format == "text":
            await self._calibrate(dialect, outcome)
        return dialect

    async def _calibrate(self, dialect: _Dialect, short: Outcome) -> None:
        """Find how many tokens a word is, from the probe and a longer prompt."""
        rng = stream_of(secrets.randbits(48), "calibrate")
        ask = Ask(prompt=random_text(rng, _PROBE_WORDS[1]), max_tokens=_PROBE_TOKENS)
        long = await self._send(ask, dialect)
        if not short.has_usage or long.num_prompt_tokens <= short.num_prompt_tokens:
            dialect.notes.append("the server counts no tokens: a word was taken for a token")
            return
        num_words = _PROBE_WORDS[1] - _PROBE_WORDS[0]
        per_word = (long.num_prompt_tokens - short.num_prompt_tokens) / num_words
        overhead = short.num_prompt_tokens - per_word * _PROBE_WORDS[0]
        dialect.scale = TextScale(max(0.0, overhead), per_word)
        if self._bench.input_len.low <= overhead:
            dialect.notes.append(
                f"the chat template alone takes {overhead:.0f} tokens: prompts are longer than "
                "--input-len"
            )

    def _asks(self, dialect: _Dialect, num: int | None = None, name: str = "ask") -> list[Ask]:
        bench = self._bench
        if bench.dataset is None:
            return random_asks(
                num if num is not None else bench.num_prompts or 100,
                self._seed,
                input_len=bench.input_len,
                output_len=bench.output_len,
                prefix_len=bench.prefix_len,
                prompt_format=self._format,
                vocab_size=bench.vocab_size,
                scale=dialect.scale,
                name=name,
            )
        asks = load_dataset(bench.dataset, bench.output_len.high)
        wanted = num if num is not None else bench.num_prompts or len(asks)
        if wanted > len(asks) and num is None:
            dialect.notes.append(
                f"the dataset's {len(asks)} prompts were repeated: a prefix cache may answer"
            )
        return [asks[index % len(asks)] for index in range(wanted)]

    async def _warm_up(self, dialect: _Dialect) -> None:
        bodies = [
            self._body(ask, dialect) for ask in self._asks(dialect, self._bench.warmup, "warm")
        ]
        width = min(len(bodies), self._bench.concurrency or 16)
        for begin in range(0, len(bodies), width or 1):
            batch = bodies[begin : begin + width]
            ends = [self._client.stream(self._bench.endpoint, body) for body in batch]
            for outcome in await asyncio.gather(*ends):
                if outcome.error is not None:
                    raise ConfigError(f"a warm-up request failed: {outcome.error}")

    # The run

    async def _one(self, ask: Ask, body: bytes) -> None:
        outcome = await self._client.stream(self._bench.endpoint, body)
        if outcome.error is None:
            self._made_input_tokens += ask.num_prompt_tokens or 0
        self._outcomes.append(outcome)
        self._observer(outcome)

    async def _closed(self, asks: Sequence[Ask], bodies: Sequence[bytes]) -> None:
        assert self._bench.concurrency is not None
        queue = iter(list(zip(asks, bodies, strict=True)))

        async def worker(queue: Iterator[tuple[Ask, bytes]]) -> None:
            for ask, body in queue:
                await self._one(ask, body)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._bench.concurrency, len(asks))):
                group.create_task(worker(queue))

    async def _open(self, asks: Sequence[Ask], bodies: Sequence[bytes]) -> None:
        bench = self._bench
        assert bench.rate is not None
        room = asyncio.Semaphore(bench.concurrency or len(asks))
        begin = time.perf_counter()

        async def at_time(due: float, ask: Ask, body: bytes) -> None:
            async with room:
                self._lags.append(time.perf_counter() - begin - due)
                await self._one(ask, body)

        times = arrivals(len(asks), bench.rate, bench.burstiness, self._seed)
        async with asyncio.TaskGroup() as group:
            for due, ask, body in zip(times, asks, bodies, strict=True):
                wait = begin + due - time.perf_counter()
                await asyncio.sleep(max(0.0, wait))
                group.create_task(at_time(due, ask, body))


async def run_serve_bench(
    bench: ServeBench, *, began: Began = lambda _: None, observer: Observer = lambda _: None
) -> ServeReport:
    """Run it on the current event loop.

    Cancelling it during the measured part makes it stop and return the report of what has ended;
    before that it raises `CancelledError` as usual.

    Raises:
        ConfigError: no server answers, or it refuses a test request.
    """
    client = OpenAIClient(bench.url, api_key=bench.api_key, timeout_s=bench.timeout_s)
    try:
        return await _Run(bench, client, began, observer).run()
    finally:
        await client.aclose()


def serve_bench(
    bench: ServeBench, *, began: Began = lambda _: None, observer: Observer = lambda _: None
) -> ServeReport:
    """`run_serve_bench` on an event loop of its own; Ctrl-C cancels it."""
    return _run_loop(run_serve_bench(bench, began=began, observer=observer))


def _run_loop(main: Coroutine[Any, Any, ServeReport]) -> ServeReport:
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
