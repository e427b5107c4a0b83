"""SmolLM2 and Gemma 3 from their published GGUF files, in float32, against `transformers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from octavo import LLM, SamplingParams
from tests.full import IS_FULL
from tests.models.reference import Verdict, compare, load_reference

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.llm import RequestOutput

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(900)]

OUTPUT_LEN = 64
GREEDY = SamplingParams(temperature=0, max_tokens=OUTPUT_LEN, ignore_eos=True, logprobs=0)
TOPICS = [
    "The capital of France is",
    "Once upon a time there was a lighthouse keeper who",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees Celsius because",
    "1, 1, 2, 3, 5, 8,",
    "Dear Sir or Madam,\n\nI am writing to",
    "Die Hauptstadt von Deutschland ist",
    "The three laws of motion, first stated by Newton, say that",
]


# All 32 prompts in every way take six minutes; by default half of them run, and a quarter or an
# eighth in the slow ways.
STEP = 1 if IS_FULL else 2
SLOW_STEP = 1 if IS_FULL else 4
SLOWEST_STEP = 1 if IS_FULL else 8


def prompts() -> list[str]:
    """32 prompts from 4 to some 300 tokens."""
    return [
        " ".join([TOPICS[(start + k) % len(TOPICS)] for k in range(count)])
        for count in (1, 2, 3, 12)
        for start in range(len(TOPICS))
    ]


def run(path: Path, step: int = 1, **options: Any) -> list[RequestOutput]:
    options = {"load_format": "decoded"} | options  # native kernels round: tests/kernels/cpu
    llm = LLM(str(path), dtype="float32", kv_cache_memory=1024**3, **options)
    try:
        return llm.generate(prompts()[::step], GREEDY)
    finally:
        llm.close()


def check(verdict: Verdict, step: int = 1) -> None:
    print(verdict)
    assert verdict.num_tokens == 32 // step * OUTPUT_LEN
    assert verdict.num_ties <= 4, verdict
    assert verdict.max_logprob_error < 1e-3, verdict


@pytest.fixture(scope="module")
def smollm2_reference(smollm2_path: Path) -> Any:
    return load_reference(smollm2_path)


def test_smollm2_batched(smollm2_path: Path, smollm2_reference: Any) -> None:
    check(compare(smollm2_reference, run(smollm2_path, STEP)), STEP)


def test_smollm2_in_chunks_of_16(smollm2_path: Path, smollm2_reference: Any) -> None:
    outputs = run(smollm2_path, SLOW_STEP, max_num_batched_tokens=16)
    check(compare(smollm2_reference, outputs), SLOW_STEP)


def test_smollm2_alone_and_streamed(smollm2_path: Path, smollm2_reference: Any) -> None:
    llm = LLM(
        str(smollm2_path), dtype="float32", kv_cache_memory=1024**3, max_num_seqs=1,
        load_format="decoded",
    )  # fmt: skip
    outputs = llm.generate(prompts()[::SLOWEST_STEP], GREEDY)
    check(compare(smollm2_reference, outputs), SLOWEST_STEP)
    for prompt, output in list(zip(prompts()[::SLOWEST_STEP], outputs, strict=True))[::4]:
        deltas = list(llm.stream(prompt, GREEDY))
        completion = output.outputs[0]
        assert [token for delta in deltas for token in delta.token_ids] == completion.token_ids
        assert "".join(delta.text for delta in deltas) == completion.text
    llm.close()


def test_gemma3_batched(gemma_path: Path) -> None:
    reference = load_reference(gemma_path)
    # Its vocabulary makes the reference slow: equal tokens are compared with it once.
    batched = run(gemma_path, SLOWEST_STEP)
    check(compare(reference, batched), SLOWEST_STEP)
    chunked = run(gemma_path, SLOWEST_STEP, max_num_batched_tokens=16)
    if [o.outputs[0].token_ids for o in chunked] != [o.outputs[0].token_ids for o in batched]:
        check(compare(reference, chunked), SLOWEST_STEP)
