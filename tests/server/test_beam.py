"""Beam search over HTTP: equal to transformers', whatever the width and the length penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from octavo.server.beam import BeamSearch
from octavo.types import Delta, PositionLogprobs, TokenLogprob
from tests.models.reference import load_reference
from tests.server.conftest import running_servers
from tests.server.fake_engine import EOS, VOCAB_SIZE, WORDS, FakeEngine
from tests.server.local_engine import LocalEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from octavo.types import SamplingParams
    from tests.conftest import TinyLlama
    from tests.server.conftest import RunningServer

PROMPTS = [[5, 9, 200, 31], [7], [301, 17, 17, 90, 44, 8, 60] * 3]
ENDS = [2, 280, 37]
"""<|im_end|>, which the random model seldom gives, and two stop tokens that it gives at times."""


@pytest.fixture(scope="module")
def tiny(tiny_llama: TinyLlama) -> Iterator[tuple[RunningServer, Any]]:
    """A model that is unsure enough for its beams to end at different lengths."""
    path = tiny_llama(initializer_range=0.15, seed=3)
    engine = LocalEngine(path)
    with running_servers() as serve:
        server = serve(engine=engine, tokenizer=engine.llm.tokenizer)
        yield server, load_reference(path)
    engine.llm.close()


def reference_beams(
    model: Any, prompt: list[int], width: int, **options: Any
) -> tuple[list[list[int]], list[float]]:
    """The new tokens of transformers' beams, the best first, and their scores."""
    import torch

    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=width,
            num_return_sequences=width,
            do_sample=False,
            eos_token_id=ENDS,
            pad_token_id=383,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
    beams = []
    for row in output.sequences[:, len(prompt) :].tolist():
        cut = next((k + 1 for k, token_id in enumerate(row) if token_id in ENDS), len(row))
        beams.append(row[:cut])
    return beams, output.sequences_scores.tolist()


@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "one", "long"])
@pytest.mark.parametrize(
    ("width", "length_penalty", "early_stopping", "min_tokens"),
    [
        (2, 1.0, False, 0),
        (4, 1.0, False, 0),
        (4, 1.0, True, 0),
        (4, 0.0, False, 0),
        (4, -1.5, False, 0),
        (4, 3.0, False, 0),
        (6, 1.0, False, 4),
    ],
)
def test_equal_to_the_reference(
    tiny: tuple[RunningServer, Any],
    prompt: list[int],
    width: int,
    length_penalty: float,
    early_stopping: bool,
    min_tokens: int,
) -> None:
    server, model = tiny
    max_tokens = 12
    answer = server.completion(
        prompt=prompt,
        max_tokens=max_tokens,
        use_beam_search=True,
        n=width,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        min_tokens=min_tokens,
        stop_token_ids=ENDS[1:],
        return_token_ids=True,
        logprobs=1,
    )
    assert answer.status_code == 200, answer.text
    extra = {"min_new_tokens": min_tokens} if min_tokens else {}
    beams, scores = reference_beams(
        model,
        prompt,
        width,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        max_new_tokens=max_tokens,
        **extra,
    )
    choices = answer.json()["choices"]
    assert [choice["token_ids"] for choice in choices] == beams
    for choice, score in zip(choices, scores, strict=True):
        total = sum(choice["logprobs"]["token_logprobs"])
        assert total / len(choice["token_ids"]) ** length_penalty == pytest.approx(score, abs=1e-3)
        last = choice["token_ids"][-1]
        assert choice["finish_reason"] == ("stop" if last in ENDS else "length")
        assert choice["stop_reason"] == (last if last in ENDS[1:] else None)
    total = sum(map(len, beams))
    usage = answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(prompt), total)


def test_the_cases_are_telling(tiny: tuple[RunningServer, Any]) -> None:
    """Some beams end early, widths and penalties matter: else the test above would prove little."""
    server, _ = tiny

    def answers(**fields: Any) -> list[Any]:
        response = server.completion(
            prompt=PROMPTS[0],
            max_tokens=12,
            use_beam_search=True,
            stop_token_ids=ENDS[1:],
            return_token_ids=True,
            **fields,
        )
        return [choice["token_ids"] for choice in response.json()["choices"]]

    usual = answers(n=4)
    assert answers(n=2) != usual[:2]
    assert answers(n=4, length_penalty=-1.5) != usual
    assert answers(n=4, early_stopping=True) != usual
    assert {len(ids) for ids in usual} != {12}
    assert server.engine.most_open >= 4


def test_several_prompts_are_searched_at_once(tiny: tuple[RunningServer, Any]) -> None:
    server, _ = tiny
    asked: dict[str, Any] = {"max_tokens": 5, "use_beam_search": True, "n": 3, "logprobs": 0}
    together = server.completion(prompt=PROMPTS, **asked, echo=True).json()
    for place, prompt in enumerate(PROMPTS):
        alone = server.completion(prompt=prompt, **asked, echo=True).json()
        choices = together["choices"][place * 3 : place * 3 + 3]
        assert [c["text"] for c in choices] == [c["text"] for c in alone["choices"]]
        for choice in choices:
            assert choice["logprobs"]["token_logprobs"][0] is None
            assert len(choice["logprobs"]["tokens"]) == len(prompt) + 5
    assert together["usage"]["prompt_tokens"] == sum(map(len, PROMPTS))


def test_ignore_eos(tiny: tuple[RunningServer, Any]) -> None:
    server, _ = tiny
    answer = server.completion(
        prompt=PROMPTS[0], max_tokens=9, use_beam_search=True, n=4, ignore_eos=True
    )
    assert answer.json()["usage"]["completion_tokens"] == 36


# Against the fake engine


def test_a_failure_or_a_deadline_ends_the_search(server: RunningServer) -> None:
    beams: dict[str, Any] = {"use_beam_search": True, "n": 2}
    server.engine.fail_at = 0
    assert server.completion(**beams).status_code == 500
    server.wait_until_idle()
    server.engine.fail_at = None
    server.engine.is_alive = False
    assert server.completion(**beams).status_code == 503
    server.engine.is_alive = True
    server.assert_serves()


def test_a_client_that_goes_ends_the_search(server: RunningServer) -> None:
    server.engine.delay = 0.02
    beams: dict[str, Any] = {"use_beam_search": True, "n": 3, "max_tokens": 1000}
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(
            "/v1/completions", json={"model": "fake", "prompt": ["a", "b"], **beams}, timeout=0.3
        )
    server.wait_until_idle()
    num_asked = len(server.engine.requests)
    assert server.engine.most_open == 6
    assert server.metrics.finished["abort"] == 2
    server.engine.delay = 0.0
    server.assert_serves()
    assert len(server.engine.requests) == num_asked + 2


class Hurried(FakeEngine):
    """Every request's deadline passes when three steps of two beams were made."""

    async def _deltas(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Delta]:
        if len(self.requests) > 5:
            yield Delta(finish_reason="timeout", num_prompt_tokens=len(prompt))
            return
        async for delta in super()._deltas(prompt, params):
            yield delta


def test_a_deadline_ends_the_search_with_what_there_is(
    serve: Callable[..., RunningServer],
) -> None:
    server = serve(engine=Hurried())
    response = server.completion(
        use_beam_search=True, n=2, max_tokens=1000, timeout=9.0, return_token_ids=True, echo=True
    )
    choices = response.json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["timeout"] * 2
    assert [len(choice["token_ids"]) for choice in choices] == [3, 3]
    assert all(0 < options.timeout_s < 9 for options in server.engine.options.values())  # type: ignore[operator]
    assert response.json()["usage"]["completion_tokens"] == 6
    assert server.metrics.finished["timeout"] == 1


def test_text_and_counts(server: RunningServer) -> None:
    response = server.completion(use_beam_search=True, n=2, max_tokens=3, prompt="hi")
    best, second = response.json()["choices"]
    assert best["text"][0] in WORDS
    assert len(best["text"]) == len(second["text"]) == 3
    assert best["text"] != second["text"]
    assert best["finish_reason"] == "length"
    assert server.metrics.finished["length"] == 1


# The search itself


def position(*logprobs: tuple[int, float]) -> PositionLogprobs:
    tops = [TokenLogprob(i, value, rank) for rank, (i, value) in enumerate(logprobs, 1)]
    return PositionLogprobs(tops[0], tops)


def test_an_end_among_the_backups_is_not_an_answer() -> None:
    """Only the best `width` candidates may finish; the others are there to go on."""
    search = BeamSearch(2, max_tokens=5, eos_token_ids=[EOS])
    search.step([position((5, -1.0), (6, -1.5), (EOS, -2.0), (7, -3.0))])
    assert [beam.token_ids for beam in search.running] == [[5], [6]]
    assert search.answers == []
    search.step([position((EOS, -0.1), (5, -3.0)), position((5, -0.1), (6, -3.0))])
    assert [beam.token_ids for beam in search.answers] == [[5, EOS]]


def test_what_is_there_at_a_deadline_is_answered() -> None:
    search = BeamSearch(3, max_tokens=5, eos_token_ids=[EOS])
    search.end("timeout")
    assert [beam.finish_reason for beam in search.answers] == ["timeout"] * 3
    search = BeamSearch(2, max_tokens=5, eos_token_ids=[EOS])
    search.step([position((EOS, -1.0), (6, -1.5), (7, -2.0), (8, -3.0))])
    search.end("timeout")
    assert [(b.token_ids, b.finish_reason) for b in search.answers] == [
        ([EOS], "stop"),
        ([6], "timeout"),
    ]
    assert search.running == []


def test_a_search_ends_though_every_candidate_would_end_too_early() -> None:
    search = BeamSearch(2, max_tokens=5, min_tokens=3, stop_token_ids=range(VOCAB_SIZE))
    search.step([position((5, -1.0), (6, -1.5))])
    assert search.running == []
    assert len(search.answers) == 2
