"""Usage of answers, compared with what the official clients' types read."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionUsage
from openai.types.responses import ResponseUsage

from octavo.gateway.model import PATHS, Amount, DevicePrice, Route, Tokens, actual
from octavo.gateway.usage_of import parse_usage
from tests.gateway.fake_answers import Answer, RouteAnswer, Seen

COUNTS = st.integers(0, 10**6)


def read(route: Route, usage: Any) -> Tokens | None:
    """The tokens of an answer with this usage."""
    return parse_usage(route, json.dumps({"usage": usage, "choices": []}).encode())[0]


@given(prompt=COUNTS, output=COUNTS, data=st.data())
def test_chat(prompt: int, output: int, data: st.DataObject) -> None:
    cached = data.draw(st.integers(0, prompt))
    usage = CompletionUsage.model_validate(
        {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
    )
    assert read("chat", usage.model_dump()) == Tokens(prompt, cached, output)


@given(given_=COUNTS, output=COUNTS, data=st.data())
def test_responses(given_: int, output: int, data: st.DataObject) -> None:
    cached = data.draw(st.integers(0, given_))
    usage = ResponseUsage.model_validate(
        {
            "input_tokens": given_,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": given_ + output,
        }
    )
    assert read("responses", usage.model_dump()) == Tokens(given_, cached, output)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_octavo", [True, False])
def test_all_routes_of_an_engine(path: str, is_octavo: bool) -> None:
    seen = Seen("POST", path, {"x-octavo-include-cost": "1"}, [], {"model": "m"})
    made = RouteAnswer(Answer(num_prompt=20, num_cached=8), seen, is_octavo=is_octavo).answer()
    tokens, finish = parse_usage(PATHS[path], json.dumps(made).encode())
    assert tokens is not None
    assert tokens.input == 20
    assert tokens.device_ns == (12_345_678 if is_octavo else None)
    assert tokens.cost_nano == (8573 if is_octavo else None)
    if PATHS[path] in ("chat", "completions", "messages", "responses"):
        assert (tokens.cached, tokens.output) == (8, 5)
        assert finish in ("stop", "end_turn", "completed")


@given(st.integers(1, 10**15))
def test_money_and_time_of_engines_are_exact(nano: int) -> None:
    usage = {"prompt_tokens": 1, "gpu_seconds": nano / 1e9, "cost": nano / 1e9}
    tokens = read("embeddings", usage)
    assert tokens is not None
    assert tokens.device_ns == tokens.cost_nano == nano


@pytest.mark.parametrize("usage", [{"gpu_seconds": 0.0, "cost": 0.0}, {"gpu_seconds": None}])
def test_an_engine_without_metering_is_not_free(usage: dict[str, Any]) -> None:
    price = DevicePrice(hourly_nano=3600 * 10**9, worst_input_ns=1000, worst_output_ns=2000)
    tokens = read("chat", {"prompt_tokens": 5, "completion_tokens": 3} | usage)
    assert tokens == Tokens(5, 0, 3)
    assert actual(tokens, price) == Amount(5000 + 6000, 8, 11_000)
    nothing = read("chat", {"prompt_tokens": 0, "completion_tokens": 0, "gpu_seconds": 0})
    assert nothing == Tokens(device_ns=0)


def test_other_spellings() -> None:
    assert read("chat", {"prompt_tokens": 5, "prompt_cache_hit_tokens": 4}) == Tokens(5, 4, 0)
    assert read("rerank", {"total_tokens": 5}) == Tokens(5)
    assert read("chat", {"prompt_tokens": 5, "prompt_tokens_details": None}) == Tokens(5)
    assert read("chat", None) is None
    assert read("messages", {"input_tokens": 2, "cache_creation_input_tokens": 3}) == Tokens(5)


def test_nonsense_is_bounded() -> None:
    usage = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}, "cost": -1}
    assert read("chat", usage) == Tokens(3, 3, 0)
    assert read("chat", {"prompt_tokens": -3, "completion_tokens": -1}) == Tokens()
    with pytest.raises(msgspec.ValidationError):
        read("chat", {"prompt_tokens": "many"})
    with pytest.raises(msgspec.DecodeError):
        parse_usage("chat", b'{"usage":')
