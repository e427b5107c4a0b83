"""`LLM`: a model in this process, without a server. The shape that vLLM's users know.

Drives the same engine core as the server does, from the caller's thread. Not thread-safe.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import msgspec

from octavo.config import EngineConfig, default_gpu_allocator, default_thread_waiting
from octavo.engine.admission import check_options, check_request
from octavo.engine.collector import collector_at_rest
from octavo.engine.core import EngineCore
from octavo.engine.local import CompletionOutput, LocalRequests, RequestOutput
from octavo.errors import ConfigError, InvalidRequestError
from octavo.runner.early import head_start
from octavo.text.tokenizer import load_tokenizer
from octavo.types import Delta, EngineInfo, EngineStats, RequestOptions, SamplingParams
from octavo.weights.open import open_checkpoint
from octavo.weights.store import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from octavo.text.grammar.check import GrammarChecker
    from octavo.text.grammar.compiler import GrammarCompiler
    from octavo.text.tokenizer import Tokenizer
    from octavo.types import StructuredOutputs

__all__ = [
    "LLM",
    "CompletionOutput",
    "Message",
    "Prompt",
    "RequestOutput",
    "TextPrompt",
    "TokensPrompt",
]

_T = TypeVar("_T")

Message = dict[str, Any]


class TokensPrompt(TypedDict):
    """A prompt as token ids."""

    prompt_token_ids: Sequence[int]


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


Prompt = str | TokensPrompt | TextPrompt


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
        self._requests = LocalRequests(self._core, self.tokenizer, self.info)

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
        given = self.sampling_params() if sampling_params is None else sampling_params
        params = _for_each(many, given, SamplingParams, "sampling_params")
        wanted = RequestOptions() if options is None else options
        ways = _for_each(many, wanted, RequestOptions, "options")
        for way in ways:
            check_options(way, self.info)
        checked = [self._check(p, s) for p, s in zip(many, params, strict=True)]
        add = self._requests.add
        ids = [add(*request, way) for request, way in zip(checked, ways, strict=True)]
        try:
            self._run(ids, show=use_tqdm)
            return self._requests.answers(ids)
        finally:
            self._requests.forget(ids)

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
        checked = self._check(prompt, params or self.sampling_params())
        yield from self._requests.stream(self._requests.add(*checked))

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

    def _run(self, ids: Sequence[str], *, show: bool) -> None:
        if not show:
            self._requests.run(ids)
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("prompts", total=len(ids))
            self._requests.run(ids, lambda num_ended: progress.advance(task, num_ended))


def _for_each(
    prompts: Sequence[Prompt], given: _T | Sequence[_T], kind: type[_T], name: str
) -> list[_T]:
    """One value per prompt: the same for all, or as many as there are prompts."""
    if isinstance(given, kind):
        return [given] * len(prompts)
    values = list(cast("Sequence[_T]", given))
    if len(values) != len(prompts):
        raise InvalidRequestError(f"{len(prompts)} prompts, but {len(values)} {name}", param=name)
    return values
