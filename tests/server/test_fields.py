"""Values of fields reach the engine as they are given, the model's defaults where they are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from octavo.types import StructuredOutputs

if TYPE_CHECKING:
    from tests.server.conftest import RunningServer


def test_sampling_values_reach_the_engine_as_given(server: RunningServer) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.125,
        "seed": -(2**63),
        "max_tokens": 9,
        "min_tokens": 2,
        "stop": ["zz", "yy"],
        "stop_token_ids": [1],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.25,
        "allowed_token_ids": [5, 6],
        "bad_words": ["a", "b"],
    }
    biases = {"logit_bias": {"5": 1.5, "0007": -100}}
    assert server.completion(**fields, **biases, logprobs=3).status_code == 200
    answer = server.chat(**fields, **biases, logprobs=True, top_logprobs=3)
    assert answer.status_code == 200
    assert len(server.engine.requests) == 2
    for _, params in server.engine.requests.values():
        assert params.logprobs == 3
        assert params.logit_bias == {5: 1.5, 7: -100}
        for name, value in fields.items():
            got = getattr(params, name)
            assert (list(got) if isinstance(got, tuple) else got) == value


def test_defaults_of_the_model(serve: Any) -> None:
    server = serve(
        defaults={
            "temperature": 0.6,
            "top_k": 64,
            "top_p": 0.95,
            "repetition_penalty": 1.1,
            "do_sample": True,
            "min_p": None,
        }
    )
    server.chat()
    server.completion(temperature=0, top_p=1, repetition_penalty=1)
    (_, chat), (_, completion) = server.engine.requests.values()
    assert (chat.temperature, chat.top_k, chat.top_p, chat.min_p) == (0.6, 64, 0.95, 0.0)
    assert (completion.temperature, completion.top_k, completion.top_p) == (0, 64, 1)
    assert (chat.repetition_penalty, completion.repetition_penalty) == (1.1, 1.0)


SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, StructuredOutputs(json_object=True)),
        (
            {"response_format": {"type": "json_object", "value": SCHEMA}},
            StructuredOutputs(json=SCHEMA),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            StructuredOutputs(json=SCHEMA),
        ),
        ({"structured_outputs": {"json": "{}"}}, StructuredOutputs(json="{}")),
        ({"structured_outputs": {"regex": "a+"}}, StructuredOutputs(regex="a+")),
        ({"structured_outputs": {"choice": ["a"]}}, StructuredOutputs(choice=["a"])),
        (
            {"structured_outputs": {"grammar": "root ::= x"}},
            StructuredOutputs(grammar="root ::= x"),
        ),
        ({"structured_outputs": {"json_object": True}}, StructuredOutputs(json_object=True)),
        ({"guided_json": SCHEMA}, StructuredOutputs(json=SCHEMA)),
        ({"guided_json": True}, StructuredOutputs(json=True)),
        ({"guided_regex": "a+"}, StructuredOutputs(regex="a+")),
        ({"guided_choice": ["a"]}, StructuredOutputs(choice=["a"])),
        ({"guided_grammar": "root ::= x"}, StructuredOutputs(grammar="root ::= x")),
    ],
)
def test_every_spelling_of_a_structure(
    server: RunningServer, fields: dict[str, Any], wanted: StructuredOutputs | None
) -> None:
    assert server.completion(**fields).status_code == 200
    ((_, params),) = server.engine.requests.values()
    assert params.structured_outputs == wanted
