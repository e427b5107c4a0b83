from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import pytest

from octavo.types import Delta, EngineInfo, KVCacheLayout, SamplingParams
from tests.bench.fake_server import Fake, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A fake OpenAI server."""
    with serving(Fake(ttft_s=0.0, itl_s=0.0, prompt_tokens=7)) as server:
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Octavo home of the test's own, and no key in the environment."""
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A path that `resolve` accepts; nothing reads it."""
    path = tmp_path / "m.gguf"
    path.touch()
    return str(path)


class FakeLLM:
    """Says its words one by one; class attributes are set by the tests."""

    words = ["Hel", "lo", "."]
    finish_reason: Any = "stop"
    has_chat_template = True
    after_word: Any = staticmethod(lambda index: None)
    made: list[FakeLLM] = []

    def __init__(self, model: str, **options: Any) -> None:
        self.model = model
        self.options = options
        self.asked: list[tuple[Any, SamplingParams]] = []
        self.is_closed = False
        self.num_broken_off = 0
        self.made.append(self)
        self.info = EngineInfo(
            architecture="fake",
            dtype="float32",
            device="cpu",
            vocab_size=300,
            max_model_len=64,
            kv_cache=KVCacheLayout(1, 1, 1),
            startup_s={},
        )

    def sampling_params(self, given: dict[str, Any]) -> SamplingParams:
        return SamplingParams(**{"temperature": 0.25, **given})

    def stream(self, prompt: Any, params: SamplingParams) -> Iterator[Delta]:
        self.asked.append((prompt, params))
        try:
            for index, word in enumerate(self.words):
                is_last = index == len(self.words) - 1
                yield Delta(
                    text=word,
                    token_ids=[index],
                    num_prompt_tokens=5,
                    num_output_tokens=index + 1,
                    finish_reason=self.finish_reason if is_last else None,
                    error="out of paper" if self.finish_reason == "error" else None,
                )
                self.after_word(index)
        except GeneratorExit:
            self.num_broken_off += 1
            raise

    def stream_chat(self, messages: Any, params: SamplingParams) -> Iterator[Delta]:
        return self.stream([dict(message) for message in messages], params)

    def generate(self, prompts: Any, params: SamplingParams) -> list[Any]:
        self.asked.append((prompts, params))
        output = types.SimpleNamespace(token_ids=[0] * (params.max_tokens or 0))
        return [types.SimpleNamespace(outputs=[output]) for _ in prompts]

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def llms(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    """Put `FakeLLM` in the engine's place; the list holds what commands made of it."""
    module = types.ModuleType("octavo.llm")
    made: list[FakeLLM] = []
    module.LLM = type("LLM", (FakeLLM,), {"made": made})  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "octavo.llm", module)
    return made
