from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.messages import TokenOutput
from octavo.engine.output import OutputProcessor, merge_deltas
from octavo.types import Delta, PositionLogprobs, SamplingParams, TokenLogprob
from tests.engine.byte_tokenizer import EOS, VOCAB_SIZE, byte_tokenizer, ids_of

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKENIZER = byte_tokenizer()
PROMPT = ids_of("What? ")


def run(outputs: Sequence[TokenOutput], **params: Any) -> tuple[list[Delta], OutputProcessor]:
    """The deltas of outputs, up to the end."""
    processor = OutputProcessor(PROMPT, SamplingParams(**params), TOKENIZER)
    deltas = []
    for output in outputs:
        deltas.append(processor.push(output))
        if processor.is_finished:
            break
    return deltas, processor


def chunked(ids: list[int], sizes: list[int], reason: Any) -> list[TokenOutput]:
    """Outputs of the given sizes, the last of which ends the request."""
    outputs: list[TokenOutput] = []
    start = 0
    for size in [*sizes, len(ids)]:
        outputs.append(TokenOutput("r", ids[start : start + size]))
        start += size
        if start >= len(ids):
            break
    outputs[-1].finish_reason = reason
    return outputs


@given(
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40),
    st.lists(st.integers(1, 5), max_size=20),
    st.booleans(),
)
def test_text_is_what_the_tokenizer_decodes(
    ids: list[int], sizes: list[int], skip_special_tokens: bool
) -> None:
    deltas, _ = run(chunked(ids, sizes, "length"), skip_special_tokens=skip_special_tokens)
    whole = merge_deltas(deltas)
    assert whole.text == TOKENIZER.decode(ids, skip_special_tokens=skip_special_tokens)
    assert whole.token_ids == ids
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
    assert whole.num_output_tokens == len(ids)
    assert whole.num_prompt_tokens == len(PROMPT)


@given(
    st.text("abc é世", max_size=30),
    st.lists(st.text("abc é世", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(1, 5), max_size=20),
)
def test_stop_strings_cut_text_and_tokens(text: str, stop: list[str], sizes: list[int]) -> None:
    ids = ids_of(text) or ids_of("-")
    text = text or "-"
    deltas, processor = run(chunked(ids, sizes, "length"), stop=stop)
    whole = merge_deltas(deltas)
    ends = {s: text.index(s) + len(s) for s in stop if s in text}
    if not ends:
        assert (whole.text, whole.finish_reason) == (text, "length")
        return
    end = min(ends.values())
    hit = max((s for s in ends if ends[s] == end), key=len)
    assert whole.text == text[: end - len(hit)]
    assert (whole.finish_reason, whole.stop_reason) == ("stop", hit)
    assert whole.token_ids == ids_of(text[:end])
    assert whole.num_output_tokens == len(whole.token_ids)
    engine_goes_on = len(deltas) < len(chunked(ids, sizes, "length"))
    assert processor.hit_stop_string == engine_goes_on


@pytest.mark.parametrize("skip_special_tokens", [True, False])
@pytest.mark.parametrize("stop", [(), ("never",)])
def test_the_token_that_ends_it_has_no_text(skip_special_tokens: bool, stop: Any) -> None:
    ids = [*ids_of("Yes"), EOS]
    [delta], processor = run(
        [TokenOutput("r", ids, finish_reason="stop")],
        skip_special_tokens=skip_special_tokens,
        stop=stop,
    )
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("Yes", ids, "stop")
    assert delta.stop_reason is None
    assert not processor.hit_stop_string


def test_special_tokens_that_a_reader_needs_are_shown() -> None:
    ids = [1, *ids_of("a"), 0, *ids_of("b"), EOS]
    for shown, text in (((), "ab"), ((1,), "<s>ab"), ((0, 1), "<s>a<unk>b")):
        (delta,), _ = run([TokenOutput("r", ids, finish_reason="stop")], shown_token_ids=shown)
        assert delta.text == text


def test_a_stop_token_of_the_caller_has_no_text() -> None:
    ids = ids_of("Yes.")
    output = TokenOutput("r", ids, finish_reason="stop", stop_reason=ids[-1])
    [delta], _ = run([output], stop_token_ids=[ids[-1]])
    assert (delta.text, delta.stop_reason) == ("Yes", ids[-1])


def test_text_held_back_comes_at_the_end() -> None:
    deltas, _ = run(chunked(ids_of("one EN"), [6], "length"), stop=["END"])
    assert [delta.text for delta in deltas] == ["one EN"]
    deltas, _ = run(
        [TokenOutput("r", ids_of("one EN")), TokenOutput("r", [], finish_reason="abort")],
        stop=["END"],
    )
    assert [delta.text for delta in deltas] == ["one ", "EN"]
    processor = OutputProcessor(PROMPT, SamplingParams(), TOKENIZER)
    assert processor.push(TokenOutput("r", ids_of("é")[:1])).text == ""
    last = processor.end("error", "gone")
    assert (last.text, last.finish_reason, last.error) == (
        "\N{REPLACEMENT CHARACTER}",
        "error",
        "gone",
    )


def test_logprobs_stay_parallel_to_tokens() -> None:
    def entry(token_id: int) -> PositionLogprobs:
        return PositionLogprobs(TokenLogprob(token_id, -0.5, 1), [TokenLogprob(token_id, -0.5, 1)])

    ids = ids_of("abcdef")
    [delta], _ = run([TokenOutput("r", ids, [entry(i) for i in ids])], stop=["c"], logprobs=1)
    assert delta.text == "ab"
    assert [e.sampled.token_id for e in delta.logprobs] == delta.token_ids == ids[:3]


def test_without_a_tokenizer_there_is_no_text() -> None:
    processor = OutputProcessor([5], SamplingParams(), None)
    delta = processor.push(TokenOutput("r", [7, 8], finish_reason="length", num_cached_tokens=1))
    assert (delta.text, delta.token_ids, delta.num_cached_tokens) == ("", [7, 8], 1)


def test_the_first_word_keeps_its_space_and_characters_may_cross_the_border() -> None:
    head, tail = ids_of("é")
    processor = OutputProcessor([*PROMPT, head], SamplingParams(), TOKENIZER)
    assert processor.push(TokenOutput("r", [tail, *ids_of(" x")])).text == "é x"
