"""`LLM`: a model in this process, without a server. The shape that vLLM's users know.

Drives the same engine core as the server does, from the caller's thread. Not thread-safe.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, cast

import msgspec

from octavo.config import EngineConfig, default_gpu_allocator, default_thread_waiting
from octavo.engine.admission import bad_words_token_ids, check_options, check_request
from octavo.engine.collector import collector_at_rest
from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest
from octavo.engine.output import DeltaSum, OutputProcessor
from octavo.errors import ConfigError, InvalidRequestError
from octavo.runner.early import head_start
from octavo.text.tokenizer import load_tokenizer
from octavo.types import Charge, Delta, EngineInfo, EngineStats, RequestOptions, SamplingParams
from octavo.weights.open import open_checkpoint
from octavo.weights.store import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from octavo.text.grammar.check import GrammarChecker
    from octavo.text.grammar.compiler import GrammarCompiler
    from octavo.text.tokenizer import Tokenizer
    from octavo.types import FinishReason, PositionLogprobs, StructuredOutputs

Message = dict[str, Any]


class TokensPrompt(TypedDict):
    """A prompt as token ids."""

    prompt_token_ids: Sequence[int]


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


Prompt = str | TokensPrompt | TextPrompt


@dataclass(slots=True)
class CompletionOutput:
    """One answer. `stop_reason` is the stop string or token id that ended it."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its answers; `charge` is the device time that they cost, with `metering`."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    num_cached_tokens: int = 0
    charge: Charge | None = None


@dataclass(slots=True)
class _Running:
    """A request in the core, and what it produced so far."""

    prompt: str | None
    prompt_token_ids: list[int]
    processor: OutputProcessor
    wants_logprobs: bool
    output: DeltaSum = field(default_factory=DeltaSum)
    charge: Charge | None = None


class LLM:
    """An engine in this process.

    Args:
        model: a pulled name, a Hugging Face folder or a GGUF file.
        skip_tokenizer_init: prompts come as token ids and texts stay empty.
        options: fields of `EngineConfig` (`dtype`, `max_model_len`, `max_num_seqs`,
            `kv_cache_memory`, ...), named as `octavo serve`'s flags.

    Attributes:
        info: what was loaded and allocated.
        tokenizer: None with `skip_tokenizer_init`.

    Raises:
        StartupError: the model cannot be loaded.
    """

    def __init__(self, model: str, *, skip_tokenizer_init: bool = False, **options: Any) -> None:
        unknown = options.keys() - set(EngineConfig.__struct_fields__)
        if unknown:
            raise ConfigError(f"LLM has no option {sorted(unknown)[0]!r}")
        config = EngineConfig(model=model, **options)
        if config.task not in ("auto", "generate"):
            raise ConfigError(
                f"LLM generates text only: serve the model with `octavo serve --task {config.task}`"
            )
        began_ns = time.perf_counter_ns()
        default_thread_waiting()
        default_gpu_allocator()
        with collector_at_rest(), head_start(config):
            self._start(config, skip_tokenizer_init=skip_tokenizer_init)
            self._core.ready(began_ns)

    def _start(self, config: EngineConfig, *, skip_tokenizer_init: bool) -> None:
        path = resolve(config.model)
        checkpoint = open_checkpoint(path, load_format=config.load_format)
        self.tokenizer: Tokenizer | None = None
        with ThreadPoolExecutor(max_workers=1) as pool:
            tokenizer = (
                None
                if skip_tokenizer_init
                else pool.submit(load_tokenizer, path, checkpoint.config)
            )
            # torch is imported while the tokenizer is built.
            from octavo.runner.executor import make_executor

            self._executor = make_executor(config, checkpoint)
            if tokenizer is not None:
                self.tokenizer = tokenizer.result()
        self._generation_config = dict(checkpoint.generation_config)
        checkpoint.close()
        self.info: EngineInfo = msgspec.structs.replace(
            self._executor.info, scheduling_policy=config.scheduling_policy
        )
        self._core = EngineCore.from_config(
            self._executor, config, None if self.tokenizer is None else self._grammars
        )
        self._checker: GrammarChecker | None = None
        eos = self.tokenizer.eos_token_ids if self.tokenizer is not None else ()
        self._eos_token_ids = [i for i in eos if i < self.info.vocab_size]
        self._running: dict[str, _Running] = {}
        self._deadlines: dict[str, float] = {}
        self._ids = itertools.count()

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` works."""
        return self.tokenizer is not None and self.tokenizer.has_chat_template

    @property
    def stats(self) -> EngineStats:
        """The engine's state and counters."""
        return self._core.stats

    def sampling_params(self, given: Mapping[str, Any] | None = None) -> SamplingParams:
        """Parameters with the model's own defaults (its generation_config) under `given`."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        own = {n: self._generation_config[n] for n in names if self._generation_config.get(n)}
        return SamplingParams(**(own | dict(given or {})))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        options: RequestOptions | Sequence[RequestOptions] | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Answers in the order of the prompts, computed together.

        Args:
            prompts: texts, or `{"prompt_token_ids": [...]}`.
            sampling_params: for all, or one per prompt; None: the model's own defaults.
            options: priority, cache salt, time limit, tenant; for all, or one per prompt.
            use_tqdm: show a progress bar on stderr.

        Raises:
            InvalidRequestError: a prompt or parameter is at fault; nothing was computed.
        """
        many = [prompts] if isinstance(prompts, str | dict) else list(prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params = [sampling_params or self.sampling_params()] * len(many)
        else:
            params = list(sampling_params)
            if len(params) != len(many):
                raise InvalidRequestError(
                    f"{len(many)} prompts, but {len(params)} sampling_params",
                    param="sampling_params",
                )
        if options is None or isinstance(options, RequestOptions):
            ways = [options or RequestOptions()] * len(many)
        else:
            ways = list(options)
            if len(ways) != len(many):
                raise InvalidRequestError(
                    f"{len(many)} prompts, but {len(ways)} options", param="options"
                )
        for way in ways:
            check_options(way, self.info)
        checked = [self._check(p, s) for p, s in zip(many, params, strict=True)]
        ids = [self._add(*request, way) for request, way in zip(checked, ways, strict=True)]
        try:
            self._finish(ids, show=use_tqdm)
            self._await_charges(ids)
            return [self._output(request_id) for request_id in ids]
        finally:
            self._forget(ids)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        options: RequestOptions | Sequence[RequestOptions] | None = None,
        use_tqdm: bool = False,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Like `generate`, for one conversation or several.

        Raises:
            InvalidRequestError: also when the model has no chat template.
        """
        is_one = not messages or isinstance(messages[0], dict)
        conversations = cast("Sequence[Sequence[Message]]", [messages] if is_one else messages)
        prompts: list[Prompt] = [
            {"prompt_token_ids": self._encode_chat(conversation, template_options)}
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, options=options, use_tqdm=use_tqdm)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Increments of one answer; closing the iterator aborts it."""
        request_id = self._add(*self._check(prompt, params or self.sampling_params()))
        running = self._running[request_id]
        try:
            while not running.processor.is_finished or not running.output.is_empty:
                if running.output.is_empty:
                    self._step()
                else:
                    yield running.output.take()
        finally:
            self._forget([request_id])

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> Iterator[Delta]:
        """Increments of the answer to one conversation."""
        return self.stream({"prompt_token_ids": self._encode_chat(messages, {})}, params)

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes."""
        self._core.scheduler.kv_cache.reset_prefix_cache()

    def close(self) -> None:
        """Free the model's memory. The object is of no use afterwards."""
        if self._checker is not None:
            self._checker.close()
        self._core.close()
        self._executor.close()

    def _encode_chat(self, messages: Sequence[Message], options: Mapping[str, Any]) -> list[int]:
        if self.tokenizer is None:
            raise InvalidRequestError("there is no tokenizer for a chat", param="messages")
        template = self.tokenizer.require_chat_template()
        text = template.render(list(messages), **options)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _grammars(self) -> GrammarCompiler:
        from octavo.text.grammar.compiler import compiler_for

        assert self.tokenizer is not None
        return compiler_for(self.tokenizer, self.info.vocab_size)

    def _check_grammar(self, spec: StructuredOutputs) -> None:
        if self.tokenizer is None:
            raise InvalidRequestError(
                "structured_outputs need a tokenizer", param="structured_outputs"
            )
        if self._checker is None:
            from octavo.text.grammar.check import checker_for

            self._checker = checker_for(self.tokenizer, self.info.vocab_size)
        self._checker.check(spec)

    def _check(
        self, prompt: Prompt, params: SamplingParams
    ) -> tuple[str | None, list[int], SamplingParams]:
        given: Mapping[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else prompt
        text: str | None = given.get("prompt")
        if "prompt_token_ids" in given:
            token_ids = list(given["prompt_token_ids"])
        elif text is None:
            raise InvalidRequestError(
                "a prompt is a text or has 'prompt' or 'prompt_token_ids'", param="prompt"
            )
        elif self.tokenizer is None:
            raise InvalidRequestError("without a tokenizer, give token ids", param="prompt")
        else:
            token_ids = self.tokenizer.encode(text)
        has_tokenizer = self.tokenizer is not None
        if params.structured_outputs is not None:
            self._check_grammar(params.structured_outputs)
        return (
            text,
            token_ids,
            check_request(token_ids, params, self.info, has_tokenizer=has_tokenizer),
        )

    def _add(
        self,
        text: str | None,
        token_ids: list[int],
        params: SamplingParams,
        options: RequestOptions | None = None,
    ) -> str:
        request_id, options = str(next(self._ids)), options or RequestOptions()
        banned: list[list[int]] = []
        if params.bad_words and self.tokenizer is not None:  # refused without a tokenizer
            banned = bad_words_token_ids(params.bad_words, self.tokenizer, self.info.vocab_size)
        self._core.add(
            AddRequest(
                request_id,
                token_ids,
                params,
                self._eos_token_ids,
                options.cache_salt,
                options.priority,
                options.tenant,
                banned,
            )
        )
        if options.timeout_s is not None:
            self._deadlines[request_id] = time.monotonic() + options.timeout_s
        self._running[request_id] = _Running(
            text,
            token_ids,
            OutputProcessor(token_ids, params, self.tokenizer),
            params.logprobs is not None,
        )
        return request_id

    def _step(self) -> int:
        """One step of the engine; how many requests ended in it."""
        num_ended = 0
        for output in self._core.step():
            running = self._running.get(output.request_id)
            if running is None or running.processor.is_finished:
                continue
            running.output.add(running.processor.push(output))
            num_ended += running.processor.is_finished
            running.charge = output.charge
            if running.processor.hit_stop_string:
                self._core.abort([output.request_id])
        num_ended += self._end_overdue()
        for request_id, charge in self._core.take_charges():
            if (ended := self._running.get(request_id)) is not None:
                ended.charge = charge
        return num_ended

    def _end_overdue(self) -> int:
        """End what has passed its deadline, with what there is; how many."""
        if not self._deadlines:
            return 0
        now = time.monotonic()
        overdue = [i for i, deadline in self._deadlines.items() if deadline <= now]
        num_ended = 0
        for request_id in overdue:
            del self._deadlines[request_id]
            running = self._running[request_id]
            if not running.processor.is_finished:
                running.output.add(running.processor.end("timeout"))
                self._core.abort([request_id])
                num_ended += 1
        return num_ended

    def _finish(self, ids: list[str], *, show: bool) -> None:
        open_ids = {i for i in ids if not self._running[i].processor.is_finished}

        def step() -> int:
            if not self._step():  # the usual case, which need not look at every request
                return 0
            done = {i for i in open_ids if self._running[i].processor.is_finished}
            open_ids.difference_update(done)
            return len(done)

        if not show:
            while open_ids:
                step()
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("prompts", total=len(ids))
            while open_ids:
                progress.advance(task, step())

    def _await_charges(self, ids: list[str]) -> None:
        """Run the last steps of those that were ended here: they pay for them."""
        if self.info.work is not None:
            while any(self._running[i].charge is None for i in ids):
                self._step()

    def _output(self, request_id: str) -> RequestOutput:
        running = self._running[request_id]
        whole = running.output.take()
        completion = CompletionOutput(
            index=0,
            text=whole.text,
            token_ids=whole.token_ids,
            logprobs=whole.logprobs if running.wants_logprobs else None,
            finish_reason=whole.finish_reason,
            stop_reason=whole.stop_reason,
        )
        return RequestOutput(
            request_id=request_id,
            prompt=running.prompt,
            prompt_token_ids=running.prompt_token_ids,
            outputs=[completion],
            num_cached_tokens=whole.num_cached_tokens,
            charge=running.charge,
        )

    def _forget(self, ids: Sequence[str]) -> None:
        for request_id in ids:
            self._deadlines.pop(request_id, None)
        open_ids = [i for i in ids if not self._running.pop(i).processor.is_finished]
        self._core.abort(open_ids)
