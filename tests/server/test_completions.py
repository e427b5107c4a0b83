"""What completions hold beside the text: echoes, prompts' log-probabilities, the best of more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from octavo.server.answers import CompletionLogprobsMaker
from octavo.types import PositionLogprobs, TokenLogprob
from tests.engine.byte_tokenizer import byte_tokenizer
from tests.server.fake_engine import EOS, NUM_SPECIAL, FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx

    from octavo.types import SamplingParams
    from tests.server.conftest import RunningServer


def ids_of(text: str) -> list[int]:
    return [byte + NUM_SPECIAL for byte in text.encode()]


def choices_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return choices


def streamed(response: httpx.Response) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A stream's choices put together, and its usage."""
    assert response.status_code == 200, response.text
    whole: dict[int, dict[str, Any]] = {}
    usage: dict[str, Any] = {}
    for line in response.text.split("\n\n")[:-2]:
        chunk = json.loads(line.removeprefix("data: "))
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            known = whole.setdefault(choice["index"], {"text": "", "logprobs": None, "ids": []})
            known["text"] += choice["text"]
            known["ids"] += choice.get("token_ids") or []
            known.setdefault("prompt", choice.get("prompt_token_ids"))
            known["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"]:
                known["logprobs"] = known["logprobs"] or {}
                for name, values in choice["logprobs"].items():
                    known["logprobs"].setdefault(name, []).extend(values)
    return [whole[index] for index in sorted(whole)], usage


# Echo


@pytest.mark.parametrize("prompt", ["héllo", ids_of("héllo")])
def test_echo(server: RunningServer, prompt: Any) -> None:
    (plain,) = choices_of(server.completion(prompt=prompt, logprobs=2))
    (echo,) = choices_of(
        server.completion(prompt=prompt, logprobs=2, echo=True, return_token_ids=True)
    )
    assert echo["text"] == "héllo" + plain["text"]
    ids = ids_of("héllo") if isinstance(prompt, list) else [1, *ids_of("héllo")]
    num = len(ids)
    logprobs = echo["logprobs"]
    assert logprobs["tokens"][:num] == [FakeTokenizer().token_text(i) for i in ids]
    assert logprobs["tokens"][num:] == plain["logprobs"]["tokens"]
    assert logprobs["token_logprobs"] == [None] + [-0.25] * (num - 1 + 8)
    assert logprobs["top_logprobs"][0] is None
    assert all(1 <= len(tops) <= 2 for tops in logprobs["top_logprobs"][1:])
    # The second byte of é begins where é does: the character is not complete before it.
    starts = [0, 1, 1, 2, 3, 4] if isinstance(prompt, list) else [0, 0, 1, 1, 2, 3, 4]
    assert logprobs["text_offset"][:num] == starts
    data = bytes(i - NUM_SPECIAL for i in echo["token_ids"])
    ends = [5 + len(data[:k].decode(errors="ignore")) for k in range(8)]
    assert logprobs["text_offset"][num:] == ends
    assert server.completion(prompt=prompt, echo=True).json()["choices"][0]["logprobs"] is None


def test_echo_without_output(server: RunningServer) -> None:
    response = server.completion(prompt="héllo", logprobs=0, echo=True, max_tokens=0)
    (choice,) = choices_of(response)
    assert choice["text"] == "héllo"
    assert choice["finish_reason"] == "length"
    assert choice["stop_reason"] is None
    assert len(choice["logprobs"]["tokens"]) == 7
    usage = response.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, 0)
    many = server.completion(prompt=["a", "bc"], echo=True, max_tokens=0, n=2, best_of=3)
    assert [choice["text"] for choice in choices_of(many)] == ["a", "a", "bc", "bc"]
    usage = many.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 0)


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 0}, {"n": 2}, {"prompt": ["héllo", "b"]}])
@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_streamed_echo_is_the_whole_one(
    server: RunningServer, fields: dict[str, Any], logprobs: int | None
) -> None:
    asked = {"prompt": "héllo", "echo": True, "logprobs": logprobs, "return_token_ids": True}
    response = server.completion(**{**asked, **fields})
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = server.completion(**{**asked, **fields}, stream=True, stream_options=options)
    parts, usage = streamed(stream)
    assert usage == response.json()["usage"]
    for part, choice in zip(parts, choices_of(response), strict=True):
        for name in ("text", "logprobs", "finish_reason"):
            assert part[name] == choice[name]
        assert part["ids"] == choice["token_ids"]
        assert part["prompt"] == choice["prompt_token_ids"]
    first = json.loads(stream.text.split("\n\n")[0].removeprefix("data: "))
    assert first["choices"][0]["text"] == "héllo"


def test_an_echo_waits_for_late_log_probabilities(server: RunningServer) -> None:
    """The engine tells of a long prompt in several deltas before the first token."""
    plain = server.engine._deltas

    async def late(prompt: list[int], params: SamplingParams) -> Any:
        async for delta in plain(prompt, params):
            for position in delta.prompt_logprobs:
                yield type(delta)(prompt_logprobs=[position], num_prompt_tokens=len(prompt))
            delta.prompt_logprobs = []
            yield delta

    asked: dict[str, Any] = {"prompt": "hello", "echo": True, "logprobs": 1}
    (wanted,) = choices_of(server.completion(**asked))
    server.engine._deltas = late  # type: ignore[method-assign]
    assert choices_of(server.completion(**asked)) == [wanted]
    ((part,), _) = streamed(server.completion(**asked, stream=True))
    assert part["logprobs"] == wanted["logprobs"]


def test_what_evaluation_harnesses_ask_for(server: RunningServer) -> None:
    """lm-eval's local-completions: token ids in batches, and how it reads the answer."""
    prompts = [ids_of("The cat sat"), ids_of("A dog")]
    context_lengths = [4, 2]
    response = server.completion(
        prompt=prompts, temperature=0, max_tokens=1, logprobs=1, echo=True, seed=1234
    )
    choices = sorted(choices_of(response), key=lambda choice: choice["index"])
    for choice, ids, start in zip(choices, prompts, context_lengths, strict=True):
        scores = choice["logprobs"]["token_logprobs"][start:-1]
        tops = choice["logprobs"]["top_logprobs"][start:-1]
        assert sum(scores) == -0.25 * (len(ids) - start)
        assert all(max(top.values()) == score for top, score in zip(tops, scores, strict=True))


def test_offsets_with_special_tokens_and_sentencepiece_spaces() -> None:
    """Names of special tokens take place only where the text has them; a first space may go."""

    def positions(ids: Sequence[int]) -> list[PositionLogprobs]:
        return [PositionLogprobs(TokenLogprob(i, -1.0, 1), []) for i in ids]

    tokenizer = byte_tokenizer()
    ids = [1, *ids_of(" a"), EOS, *ids_of("b")]
    for text, offsets in (("a</s>b", [0, 0, 0, 1, 5]), (" ab", [0, 0, 1, 2, 2])):
        maker = CompletionLogprobsMaker(tokenizer, 0, hides_special=True)
        assert maker.prompt(ids, positions(ids[1:]), text).text_offset == offsets
        after = maker.output(positions([*ids_of("c"), EOS, *ids_of("d")])).text_offset
        assert after == [len(text), len(text) + 1, len(text) + 1]


# Prompts


def test_prompt_logprobs(server: RunningServer) -> None:
    prompts = [[1, *ids_of("ab")], ids_of("c")]
    choices = choices_of(server.completion(prompt=prompts, prompt_logprobs=2))
    first, *others = choices[0]["prompt_logprobs"]
    assert first is None
    assert [list(entry) for entry in others] == [["100", "101"], ["101", "102"]]
    assert others[0] == {
        "100": {"logprob": -0.25, "rank": 1, "decoded_token": "a"},
        "101": {"logprob": -1.25, "rank": 2, "decoded_token": "b"},
    }
    assert choices[1]["prompt_logprobs"] == [None]
    (both,) = choices_of(server.completion(prompt="ab", prompt_logprobs=1, logprobs=3, echo=True))
    assert [len(entry) for entry in both["prompt_logprobs"][1:]] == [1, 1]
    assert [len(tops) for tops in both["logprobs"]["top_logprobs"][1:3]] == [3, 3]


@pytest.mark.parametrize(
    ("kept", "wanted"), [(3, "llo"), (5, "hello"), (6, "hello"), (99, "hello")]
)
def test_truncated_prompts(server: RunningServer, kept: int, wanted: str) -> None:
    server.completion(prompt=ids_of("hello"), truncate_prompt_tokens=kept)
    (prompt, _), *_ = server.engine.requests.values()
    assert prompt == ids_of(wanted)
    (choice,) = choices_of(server.completion(truncate_prompt_tokens=kept, echo=True, max_tokens=0))
    assert choice["text"] == wanted


@pytest.mark.parametrize(("max_tokens", "num_kept"), [(8, 24), (None, 31), (31, 1)])
def test_prompts_truncated_to_what_fits(
    serve: Callable[..., RunningServer], max_tokens: int | None, num_kept: int
) -> None:
    server = serve(engine=FakeEngine(max_model_len=32))
    prompt = ids_of("abc" * 40)
    response = server.completion(prompt=prompt, max_tokens=max_tokens, truncate_prompt_tokens=-1)
    assert response.status_code == 200, response.text
    ((asked, params),) = server.engine.requests.values()
    assert asked == prompt[-num_kept:]
    assert num_kept + params.max_tokens == 32


# The best of more


class Lottery(FakeEngine):
    """Its choices' log-probabilities are a matter of the seed."""

    async def _deltas(self, prompt: list[int], params: SamplingParams) -> Any:
        async for delta in super()._deltas(prompt, params):
            value = -float((params.seed or 0) * 7 % 5) - 0.5
            delta.logprobs = [
                PositionLogprobs(TokenLogprob(p.sampled.token_id, value, 1), p.top)
                for p in delta.logprobs
            ]
            yield delta


@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_best_of(serve: Callable[..., RunningServer], logprobs: int | None) -> None:
    server = serve(engine=Lottery())
    asked: dict[str, Any] = {"prompt": ["a", "b"], "seed": 0, "logprobs": logprobs}
    every = choices_of(server.completion(**asked, n=5))
    response = server.completion(**asked, n=2, best_of=5)
    best = choices_of(response)
    # Seeds 0 to 4 give -0.5, -2.5, -4.5, -1.5, -3.5.
    texts = [every[prompt * 5 + seed]["text"] for prompt in (0, 1) for seed in (0, 3)]
    assert [choice["text"] for choice in best] == texts
    assert [choice["index"] for choice in best] == [0, 1, 2, 3]
    for choice in best:
        assert (choice["logprobs"] is None) == (logprobs is None)
    usage = response.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 2 * 5 * 8)


def test_best_of_n_may_be_streamed(server: RunningServer) -> None:
    (one, two), _ = streamed(server.completion(n=2, best_of=2, stream=True, seed=1))
    assert [one["text"], two["text"]] == [
        choice["text"] for choice in choices_of(server.completion(n=2, seed=1))
    ]
