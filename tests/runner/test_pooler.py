"""From hidden states to vectors, against plain loops; and what classifiers' configurations say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.runner.pooler import embeddings, label_activation, label_scores, pool
from octavo.types import PoolingParams


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.sampled_from(["mean", "cls", "last"])
)
def test_pooling_is_a_loop_over_texts(lengths: list[int], kind: Any) -> None:
    states = torch.randn(sum(lengths), 3).to(torch.bfloat16)
    found = pool(states, lengths, kind)
    assert found.dtype == torch.float32
    for text, vector in zip(states.float().split(lengths), found, strict=True):
        expected = {"mean": text.mean(0), "cls": text[0], "last": text[-1]}[kind]
        torch.testing.assert_close(vector, expected)


def test_each_request_gets_its_own_cut_and_length() -> None:
    states = torch.tensor([[3.0, 4.0, 12.0]] * 4)
    params = [
        PoolingParams(),
        PoolingParams(dimensions=2),
        PoolingParams(is_activated=False),
        PoolingParams(dimensions=2, is_activated=False),
    ]
    for default in (True, False):
        found = [np.frombuffer(v, "<f4") for v in embeddings(states, params, is_normalized=default)]
        first = np.array([3, 4, 12]) / (13 if default else 1)
        second = np.array([3, 4]) / (5 if default else 1)
        for vector, expected in zip(found, [first, second, [3, 4, 12], [3, 4]], strict=True):
            np.testing.assert_allclose(vector, expected, rtol=1e-6)
    (zero,) = embeddings(torch.zeros(1, 3), [PoolingParams()], is_normalized=True)
    assert np.isfinite(np.frombuffer(zero, "<f4")).all()


@pytest.mark.parametrize(
    ("config", "num_labels", "expected"),
    [
        ({}, 1, "sigmoid"),
        ({}, 3, "softmax"),
        ({"problem_type": "regression"}, 1, "none"),
        ({"problem_type": "multi_label_classification"}, 3, "sigmoid"),
        ({"problem_type": "single_label_classification"}, 3, "softmax"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, 1, "none"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}, 3, "sigmoid"),
        ({"sentence_transformers": {"version": "5.0"}}, 1, "sigmoid"),
    ],
)
def test_what_becomes_of_logits(config: dict[str, Any], num_labels: int, expected: str) -> None:
    kind = label_activation(config, num_labels)
    assert kind == expected
    logits = torch.randn(2, num_labels)
    raw = PoolingParams(task="classify", is_activated=False)
    first, second = label_scores(logits, [PoolingParams(task="classify"), raw], kind)
    function = {"sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(-1), "none": lambda x: x}
    np.testing.assert_allclose(
        np.frombuffer(first, "<f4"), function[expected](logits[0]), rtol=1e-6
    )
    np.testing.assert_array_equal(np.frombuffer(second, "<f4"), logits[1].numpy())
