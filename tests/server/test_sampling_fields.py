"""What sampling fields do, seen through HTTP: against transformers where it has the same, else as
exact properties of a real (tiny, random) model's answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.models.reference import load_reference
from tests.server.conftest import running_servers
from tests.server.local_engine import LocalEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import TinyLlama
    from tests.server.conftest import RunningServer

PROMPT = [5, 9, 200, 31, 77, 31]
EOS = 2
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def tiny(tiny_llama: TinyLlama) -> Iterator[tuple[RunningServer, Any]]:
    path = tiny_llama(initializer_range=0.2, seed=1)
    engine = LocalEngine(path)
    with running_servers() as serve:
        yield serve(engine=engine, tokenizer=engine.llm.tokenizer), load_reference(path)
    engine.llm.close()


@pytest.fixture
def real(tiny: tuple[RunningServer, Any]) -> RunningServer:
    return tiny[0]


@pytest.fixture
def reference(tiny: tuple[RunningServer, Any]) -> Any:
    return tiny[1]


def choices(server: RunningServer, **fields: Any) -> list[dict[str, Any]]:
    asked = {"prompt": PROMPT, "max_tokens": 24, "return_token_ids": True, **fields}
    response = server.completion(**asked)
    assert response.status_code == 200, response.text
    result: list[dict[str, Any]] = response.json()["choices"]
    return result


def tokens(server: RunningServer, **fields: Any) -> list[int]:
    asked = {"temperature": 0, "ignore_eos": True, **fields}
    ids: list[int] = choices(server, **asked)[0]["token_ids"]
    return ids


def generated(model: Any, num: int = 24, prompt: list[int] | None = None, **options: Any) -> Any:
    """transformers' greedy answer."""
    ids = torch.tensor([prompt or PROMPT])
    options = {"eos_token_id": None, "pad_token_id": 0, **options}
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=num,
            **options,
        )
    return output[0, ids.shape[1] :].tolist()


@torch.inference_mode()
def log_softmax(model: Any, ids: list[int]) -> torch.Tensor:
    """Of the token after each of `ids`, (length, vocabulary)."""
    return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


# Log-probabilities


def test_logprobs_of_prompt_and_output(real: RunningServer, reference: Any) -> None:
    (choice,) = choices(
        real, temperature=0, ignore_eos=True, logprobs=5, prompt_logprobs=3, echo=True
    )
    ids = PROMPT + choice["token_ids"]
    expected = log_softmax(reference, ids[:-1])
    got = choice["logprobs"]
    assert got["token_logprobs"][0] is None
    for place, token_id in enumerate(ids[1:]):
        wanted = expected[place, token_id].item()
        assert got["token_logprobs"][place + 1] == pytest.approx(wanted, abs=TOLERANCE)
        best = expected[place].topk(5).values.tolist()
        tops = sorted(got["top_logprobs"][place + 1].values(), reverse=True)
        assert tops[0] == pytest.approx(best[0], abs=TOLERANCE)
    entries = choice["prompt_logprobs"]
    assert entries[0] is None
    for place, (token_id, entry) in enumerate(zip(PROMPT[1:], entries[1:], strict=True)):
        ranks = expected[place].argsort(descending=True).tolist()
        mine = entry[str(token_id)]
        assert mine["rank"] == ranks.index(token_id) + 1
        assert mine["logprob"] == pytest.approx(expected[place, token_id].item(), abs=TOLERANCE)
        assert set(entry) == {str(i) for i in [token_id, *ranks[:3]]}


def test_scores_without_output(real: RunningServer, reference: Any) -> None:
    response = real.completion(
        prompt=[PROMPT, PROMPT[:2]], max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    for choice, prompt in zip(response.json()["choices"], (PROMPT, PROMPT[:2]), strict=True):
        expected = log_softmax(reference, prompt[:-1])
        wanted = [expected[k, token_id].item() for k, token_id in enumerate(prompt[1:])]
        got = choice["logprobs"]["token_logprobs"]
        assert got == [None, *(pytest.approx(value, abs=TOLERANCE) for value in wanted)]
    assert response.json()["usage"]["completion_tokens"] == 0


# Penalties


@pytest.mark.parametrize("penalty", [0.6, 1.3, 3.0])
def test_repetition_penalty(real: RunningServer, reference: Any, penalty: float) -> None:
    got = tokens(real, repetition_penalty=penalty)
    assert got == generated(reference, repetition_penalty=penalty)
    assert got != tokens(real)


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.9), (-1.0, 0.6)])
def test_presence_and_frequency_penalty(
    real: RunningServer, reference: Any, presence: float, frequency: float
) -> None:
    """OpenAI's formula on the reference's logits, step by step; only the output counts."""
    got = tokens(real, presence_penalty=presence, frequency_penalty=frequency, max_tokens=48)
    ids = list(PROMPT)
    for place, token_id in enumerate(got):
        logits = log_softmax(reference, ids)[-1]
        counts = torch.bincount(torch.tensor(got[:place], dtype=torch.long), minlength=384)
        logits = logits - counts * frequency - (counts > 0) * presence
        best, second = logits.topk(2).values.tolist()
        assert logits[token_id].item() == pytest.approx(best, abs=1e-4), (place, best, second)
        ids.append(token_id)
    assert got != tokens(real, max_tokens=48)


# Which tokens


def test_logit_bias(real: RunningServer) -> None:
    assert tokens(real, logit_bias={"123": 100}) == [123] * 24
    usual = tokens(real)
    banned = tokens(real, logit_bias={str(usual[0]): -100})
    assert usual[0] not in banned
    assert tokens(real, logit_bias={str(usual[0]): 0}) == usual


def test_allowed_token_ids(real: RunningServer) -> None:
    assert set(tokens(real, allowed_token_ids=[70, 71, 72])) <= {70, 71, 72}
    assert tokens(real, allowed_token_ids=[99]) == [99] * 24
    sampled = choices(real, allowed_token_ids=[70, 71], temperature=2.0, seed=1)[0]["token_ids"]
    assert set(sampled) == {70, 71}
    assert tokens(real, allowed_token_ids=list(range(384))) == tokens(real)


def test_bad_words(real: RunningServer, reference: Any) -> None:
    """Single tokens and sequences of the usual answer, in the words that they spell."""
    tokenizer: Any = real.tokenizer
    bias = {str(i): -100 for i in range(128, 256)}  # leaves ASCII, mostly
    usual = tokens(real, logit_bias=bias)
    words: dict[int, str] = {}
    for length in (1, 2, 3):
        for start in range(len(usual) - length):
            piece = usual[start : start + length]
            text = tokenizer.decode(piece)
            if text[:1].strip() and tokenizer.encode(text, add_special_tokens=False) == piece:
                words[length] = text
    assert len(words) > 1
    sequences = [
        tokenizer.encode(text, add_special_tokens=False)
        for word in words.values()
        for text in (word, f" {word}")
    ]
    got = tokens(real, bad_words=list(words.values()), logit_bias=bias)
    wanted = generated(
        reference,
        bad_words_ids=sequences,
        sequence_bias={(i,): -100.0 for i in range(128, 256)},
    )
    assert got == wanted
    assert got != usual
    output = PROMPT + got
    for sequence in sequences:
        for end in range(len(PROMPT) + 1, len(output) + 1):
            assert output[max(0, end - len(sequence)) : end] != sequence


def test_min_tokens_and_ignore_eos(real: RunningServer) -> None:
    """The end of sequence is made the most probable token: only these fields keep it away."""
    forced = {"logit_bias": {str(EOS): 30}, "temperature": 0}
    (plain,) = choices(real, **forced)
    assert (plain["token_ids"], plain["finish_reason"]) == ([EOS], "stop")
    assert plain["text"] == ""
    (later,) = choices(real, **forced, min_tokens=5)
    assert EOS not in later["token_ids"][:-1]
    assert (later["token_ids"][5:], later["finish_reason"]) == ([EOS], "stop")
    (ignored,) = choices(real, **forced, ignore_eos=True)
    assert (ignored["token_ids"], ignored["finish_reason"]) == ([EOS] * 24, "length")


# Stop strings


def test_stop_strings_over_token_boundaries(real: RunningServer) -> None:
    (usual,) = choices(real, temperature=0, ignore_eos=True)
    tokenizer: Any = real.tokenizer
    text, ids = usual["text"], usual["token_ids"]
    lengths = [len(tokenizer.decode(ids[:k])) for k in range(len(ids) + 1)]
    tried = 0
    for start in range(2, len(text) - 3):
        stop = text[start : start + 3]
        if "\ufffd" in text[: start + 4] and "\ufffd" in stop:
            continue  # the characters of a broken one may be known later
        where = text.index(stop)
        is_over_a_boundary = any(where < length < where + 3 for length in lengths)
        if not is_over_a_boundary:
            continue
        tried += 1
        for keeps in (False, True):
            for stream in (False, True):
                got = _stopped(real, stop, keeps=keeps, stream=stream)
                assert got == (text[: where + 3 * keeps], "stop", stop)
        if tried == 6:
            break
    assert tried >= 3


def _stopped(server: RunningServer, stop: str, *, keeps: bool, stream: bool) -> tuple[Any, ...]:
    import json

    response = server.completion(
        prompt=PROMPT,
        max_tokens=24,
        temperature=0,
        ignore_eos=True,
        stop=[stop],
        include_stop_str_in_output=keeps,
        stream=stream,
    )
    if not stream:
        (choice,) = response.json()["choices"]
        return choice["text"], choice["finish_reason"], choice["stop_reason"]
    events = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    parts = [event["choices"][0] for event in events]
    text = "".join(part["text"] for part in parts)
    return text, parts[-1]["finish_reason"], parts[-1]["stop_reason"]


# Seeds and choices


def test_seeds(real: RunningServer) -> None:
    asked: dict[str, Any] = {"temperature": 1.5, "ignore_eos": True}
    first = [c["token_ids"] for c in choices(real, **asked, seed=7, n=4)]
    again = [c["token_ids"] for c in choices(real, **asked, seed=7, n=4)]
    assert first == again
    assert len({tuple(ids) for ids in first}) == 4
    assert choices(real, **asked, seed=8)[0]["token_ids"] == first[1]  # seed + index
    without = [c["token_ids"] for c in choices(real, **asked, n=3)]
    assert len({tuple(ids) for ids in without}) == 3


def test_best_of_returns_the_most_probable(real: RunningServer) -> None:
    asked: dict[str, Any] = {"temperature": 1.5, "seed": 3, "logprobs": 0, "ignore_eos": True}
    every = choices(real, **asked, n=6)

    def mean(choice: dict[str, Any]) -> float:
        logprobs = choice["logprobs"]["token_logprobs"]
        return float(sum(logprobs) / len(logprobs))

    best = choices(real, **asked, n=2, best_of=6)
    ranked = sorted(every, key=mean, reverse=True)[:2]
    assert [c["token_ids"] for c in best] == [c["token_ids"] for c in ranked]
