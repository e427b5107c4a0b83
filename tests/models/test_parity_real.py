"""SmolLM2 and Gemma 3 from their published GGUF files, in float32, against `transformers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from octavo import LLM, SamplingParams
from tests.full import IS_FULL
from tests.models.reference import Verdict, compare, load_reference

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.llm import RequestOutput

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(900)]

OUTPUT_LEN = 64 if IS_FULL else 32
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


# All 32 prompts in every way take six minutes; by default a quarter of them run, an eighth in the
# slowest ways, and half as far.
STEP = 1 if IS_FULL else 4
SLOW_STEP = 1 if IS_FULL else 4
SLOWEST_STEP = 1 if IS_FULL else 8
SHORT_LEN = OUTPUT_LEN if IS_FULL else 24


def prompts() -> list[str]:
    """32 prompts from 4 to some 300 tokens."""
    return [
        " ".join([TOPICS[(start + k) % len(TOPICS)] for k in range(count)])
        for count in (1, 2, 3, 12)
        for start in range(len(TOPICS))
    ]


def load(path: Path, **options: Any) -> LLM:
    """One thread beside other tests costs a quarter less time than two that wait for each other."""
    # Native kernels round: tests/kernels/cpu.
    options = {"load_format": "decoded", "num_threads": 1} | options
    return LLM(str(path), dtype="float32", kv_cache_memory=1024**3, **options)


def run(path: Path, step: int = 1, **options: Any) -> list[RequestOutput]:
    llm = load(path, **options)
    try:
        return llm.generate(prompts()[::step], GREEDY)
    finally:
        llm.close()


def check(verdict: Verdict, step: int = 1, output_len: int = OUTPUT_LEN) -> None:
    print(verdict)
    assert verdict.num_tokens == 32 // step * output_len
    assert verdict.num_ties <= 4, verdict
    assert verdict.max_logprob_error < 1e-3, verdict


@pytest.fixture(scope="module")
def smollm2_reference(smollm2_path: Path) -> Any:
    return load_reference(smollm2_path)


def test_smollm2_batched(smollm2_path: Path, smollm2_reference: Any) -> None:
    outputs = run(smollm2_path, STEP, num_threads=None)  # all cores, as a user's model
    check(compare(smollm2_reference, outputs), STEP)


def test_smollm2_in_chunks_of_16(smollm2_path: Path, smollm2_reference: Any) -> None:
    outputs = run(smollm2_path, SLOW_STEP, max_num_batched_tokens=16)
    check(compare(smollm2_reference, outputs), SLOW_STEP)


def test_smollm2_alone_and_streamed(smollm2_path: Path, smollm2_reference: Any) -> None:
    llm = load(smollm2_path, max_num_seqs=1)
    params = structs.replace(GREEDY, max_tokens=SHORT_LEN)
    outputs = llm.generate(prompts()[::SLOWEST_STEP], params)
    check(compare(smollm2_reference, outputs), SLOWEST_STEP, SHORT_LEN)
    for prompt, output in list(zip(prompts()[::SLOWEST_STEP], outputs, strict=True))[::4]:
        deltas = list(llm.stream(prompt, params))
        completion = output.outputs[0]
        assert [token for delta in deltas for token in delta.token_ids] == completion.token_ids
        assert "".join(delta.text for delta in deltas) == completion.text
    llm.close()


def test_gemma3_batched(gemma_path: Path) -> None:
    reference = load_reference(gemma_path)
    # Its vocabulary makes everything slow: equal tokens are compared with the reference once, and
    # texts become tokens once.
    batched = run(gemma_path, SLOWEST_STEP)
    check(compare(reference, batched), SLOWEST_STEP)
    if not IS_FULL:  # chunks are compared with SmolLM2
        return
    llm = load(gemma_path, max_num_batched_tokens=16, skip_tokenizer_init=True)
    chunked = llm.generate(
        [{"prompt_token_ids": output.prompt_token_ids} for output in batched],
        structs.replace(GREEDY, max_tokens=SHORT_LEN),
    )
    llm.close()
    if [o.outputs[0].token_ids for o in chunked] != [
        o.outputs[0].token_ids[:SHORT_LEN] for o in batched
    ]:
        check(compare(reference, chunked), SLOWEST_STEP, SHORT_LEN)
