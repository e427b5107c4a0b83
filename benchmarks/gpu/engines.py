"""The engines that `offline.py` can drive: ours, and vLLM, which is installed apart.

Each is loaded when it is made, and takes prompts as token ids. Knows no suites and no clock.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class Counters(NamedTuple):
    """Since the engine's start; all zero where the engine does not tell."""

    num_steps: int = 0
    num_preemptions: int = 0
    scheduler_ns: int = 0
    device_ns: int = 0


class Engine(Protocol):
    """What the suites ask of an engine. End-of-sequence is ignored."""

    title: str
    """Name and version."""
    details: dict[str, Any]
    """What the first line of the results says of it."""
    vocab_size: int

    def generate(
        self, prompts: Sequence[list[int]], lengths: Sequence[int], temperature: float
    ) -> list[int]:
        """Answer all at once; how long each answer is, in tokens."""

    def stream(self, prompt: list[int], length: int) -> Iterator[int]:
        """How many tokens came, each time that some did."""

    def reset_prefix_cache(self) -> None: ...

    def counters(self) -> Counters: ...

    def close(self) -> None: ...


class Octavo:
    """`octavo.LLM`.

    Args:
        folder: the model's.
        options: fields of `EngineConfig`.
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        from octavo import LLM, SamplingParams, __version__

        self._params = SamplingParams
        self._llm = LLM(str(folder), skip_tokenizer_init=True, **options)
        info = self._llm.info
        self.title = f"octavo {__version__}"
        self.vocab_size = info.vocab_size
        self.details = {
            "startup_s": info.startup_s,
            "num_blocks": info.kv_cache.num_blocks,
            "device": info.device,
        }

    def generate(
        self, prompts: Sequence[list[int]], lengths: Sequence[int], temperature: float
    ) -> list[int]:
        params = [
            self._params(temperature=temperature, max_tokens=n, ignore_eos=True) for n in lengths
        ]
        outputs = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
        return [len(output.outputs[0].token_ids) for output in outputs]

    def stream(self, prompt: list[int], length: int) -> Iterator[int]:
        params = self._params(temperature=0.0, max_tokens=length, ignore_eos=True)
        for delta in self._llm.stream({"prompt_token_ids": prompt}, params):
            yield len(delta.token_ids)

    def reset_prefix_cache(self) -> None:
        self._llm.reset_prefix_cache()

    def counters(self) -> Counters:
        stats = self._llm.stats
        return Counters(stats.num_steps, stats.num_preemptions, stats.scheduler_ns, stats.device_ns)

    def close(self) -> None:
        self._llm.close()


class Vllm:
    """`vllm.LLM`, as of 0.24.0. It tells no counters, and does not stream.

    Args:
        folder: the model's.
        options: arguments of `vllm.LLM`.
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        vllm = importlib.import_module("vllm")
        self._params = vllm.SamplingParams
        self._llm = vllm.LLM(model=str(folder), skip_tokenizer_init=True, **options)
        self.title = f"vLLM {vllm.__version__}"
        config = self._llm.llm_engine.vllm_config.model_config
        self.vocab_size: int = config.get_vocab_size()
        self.details: dict[str, Any] = {}

    def generate(
        self, prompts: Sequence[list[int]], lengths: Sequence[int], temperature: float
    ) -> list[int]:
        params = [
            self._params(temperature=temperature, max_tokens=n, ignore_eos=True, detokenize=False)
            for n in lengths
        ]
        asks = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(asks, params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    def stream(self, prompt: list[int], length: int) -> Iterator[int]:
        raise NotImplementedError("vllm.LLM does not stream")

    def reset_prefix_cache(self) -> None:
        self._llm.reset_prefix_cache()

    def counters(self) -> Counters:
        return Counters()

    def close(self) -> None:
        """Its engine's process ends with ours."""


ENGINES: dict[str, type[Octavo | Vllm]] = {"octavo": Octavo, "vllm": Vllm}
