"""What a key may do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from octavo.errors import NotAllowedError
from octavo.gateway.key_scopes import check_scopes, visible_models
from octavo.gateway.model import Call, KeyInfo
from tests.gateway.test_limits import call_of

KEY = KeyInfo(
    key_id="k", models=("small*", "embed"), features=("chat", "search-*"),
    routes=("chat", "embeddings"),
)  # fmt: skip


def with_key(key: KeyInfo, **fields: Any) -> Call:
    return msgspec.structs.replace(call_of(**fields), key=key)


def test_what_is_empty_is_not_restricted() -> None:
    check_scopes(with_key(KeyInfo(key_id="k"), model="any", feature="any", route="rerank"))


@pytest.mark.parametrize(
    "fields", [{"model": "small-1", "feature": "chat"}, {"model": "embed", "feature": "search-x"}]
)
def test_what_is_allowed(fields: dict[str, Any]) -> None:
    check_scopes(with_key(KEY, **fields))


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model": "large", "feature": "chat"}, "model_not_allowed", "'large'"),
        ({"model": "Small-1", "feature": "chat"}, "model_not_allowed", "small*, embed"),
        ({"model": "embed", "feature": "billing"}, "feature_not_allowed", "'billing'"),
        ({"model": "embed", "feature": ""}, "feature_not_allowed", "leave out the feature"),
        (
            {"model": "embed", "feature": "chat", "route": "score", "path": "/v1/score"},
            "route_not_allowed",
            "/v1/score",
        ),
    ],
)
def test_what_is_not_allowed(fields: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(NotAllowedError) as caught:
        check_scopes(with_key(KEY, **fields))
    assert (caught.value.status, caught.value.code) == (403, code)
    assert words in caught.value.message


def test_only_models_that_may_be_asked_for_are_seen() -> None:
    assert visible_models(KEY, ["small-1", "large", "embed"]) == ["small-1", "embed"]
    assert visible_models(KeyInfo(key_id="k"), ["a", "b"]) == ["a", "b"]
