"""The fields of the routes that answer with vectors, labels, scores and ranks."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.server.fake_engine import FakeEngine
from tests.server.probes import Probe, Table, changes, harmless, refused

_SHARED: dict[str, Probe] = {
    "model": refused({"model": "org/other"}, status=404),
    "truncate_prompt_tokens": changes({"truncate_prompt_tokens": 3}),
    "use_activation": changes({"use_activation": False}),
    "priority": changes({"priority": 1}),
    "timeout": changes({"timeout": 30.0}),
    "user": harmless({"user": "u"}, "it says who asks, and the answer is the same for all"),
}
_INPUT: dict[str, Probe] = {
    "input": changes({"input": "other"}),
    "add_special_tokens": changes({"add_special_tokens": False}),
}
_VECTOR: dict[str, Probe] = {
    "encoding_format": changes(
        {"encoding_format": "base64"}, neutral=({"encoding_format": "float"},)
    ),
    "dimensions": changes({"dimensions": 2}),
}


def _scoring() -> dict[str, Any]:
    engine = FakeEngine()
    engine.info = msgspec.structs.replace(engine.info, tasks=("score",))
    return {"engine": engine}


_RANKED: dict[str, Any] = {"query": "hello", "documents": ["hello", "other, longer"]}

TABLE = (
    Table(
        path="/v1/embeddings",
        body={"model": "fake", "input": "hello"},
        probes={
            **_SHARED,
            **_INPUT,
            **_VECTOR,
            "normalize": changes({"normalize": False}),
        },
    ),
    Table(
        path="/pooling",
        body={"model": "fake", "input": "hello"},
        probes={**_SHARED, **_INPUT, **_VECTOR, "task": changes({"task": "classify"})},
    ),
    Table(
        path="/classify",
        body={"model": "fake", "input": "hello"},
        probes={**_SHARED, **_INPUT},
    ),
    *(
        Table(
            path=path,
            serves=_scoring,
            body={"model": "fake", "text_1": "hello", "text_2": ["other", "another"]},
            probes={
                **_SHARED,
                "text_1": changes({"text_1": "other"}),
                "text_2": changes({"text_2": ["other"]}),
            },
        )
        for path in ("/score", "/v1/score")
    ),
    *(
        Table(
            path=path,
            serves=_scoring,
            body={"model": "fake", **_RANKED},
            probes={
                **_SHARED,
                "query": changes({"query": "other"}),
                "documents": changes({"documents": ["hello"]}),
                "documents[].text": changes(
                    {"documents": [{"text": "other"}]}, {"documents": [{"text": "hello"}]}
                ),
                "top_n": changes({"top_n": 1}),
                "return_documents": changes({"return_documents": False}),
            },
        )
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ),
)
