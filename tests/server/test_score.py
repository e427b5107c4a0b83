"""`/score` and `/rerank`: by a cross-encoder, and by embeddings' cosine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from octavo.types import PoolingParams
from tests.server.fake_engine import FakeTokenizer, fake_vector
from tests.server.test_embeddings import error_of, of_tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.server.conftest import RunningServer


@pytest.fixture
def embedder(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve(engine=of_tasks("embed"))


@pytest.fixture
def crosser(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve(engine=of_tasks("classify", "score", has_token_types=True))


def post(server: RunningServer, path: str, **fields: Any) -> httpx.Response:
    return server.client.post(path, json={"model": "fake", **fields})


def cosine(first: str, second: str) -> float:
    a, b = (
        np.frombuffer(fake_vector(FakeTokenizer().encode(text), PoolingParams()), "<f4")
        for text in (first, second)
    )
    return float(a @ b)


def scores(response: httpx.Response) -> list[float]:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    assert {item["object"] for item in data} == {"score"}
    return [item["score"] for item in data]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_cosines_of_one_to_one_one_to_many_and_many_to_many(
    embedder: RunningServer, path: str
) -> None:
    texts = ["bcd", "efghi", "bcd"]
    for first, second, pairs in (
        ("a", "bcd", [("a", "bcd")]),
        ("a", texts, [("a", text) for text in texts]),
        (["a"], texts, [("a", text) for text in texts]),
        (["x", "yy", "zzz"], texts, list(zip(["x", "yy", "zzz"], texts, strict=True))),
    ):
        found = scores(post(embedder, path, text_1=first, text_2=second))
        assert found == pytest.approx([cosine(a, b) for a, b in pairs], abs=1e-6)
    # Each text is embedded once, however often it occurs.
    embedder.engine.pooled.clear()
    answer = post(embedder, path, text_1="a", text_2=texts).json()
    assert len(embedder.engine.pooled) == 3
    assert answer["usage"] == {"prompt_tokens": 2 + 4 + 6, "total_tokens": 12}


def test_a_cross_encoder_reads_both_texts_at_once(crosser: RunningServer) -> None:
    found = scores(post(crosser, "/score", text_1="ab", text_2=["c", "def"]))
    # The fake's score is the number of tokens, two special ones among them.
    assert found == [5 / 1024, 7 / 1024]
    for ids, params, _ in crosser.engine.pooled.values():
        assert params.task == "score"
        assert params.second_start == 3
        assert ids[3] == 1
    answer = post(crosser, "/score", text_1="ab", text_2="def", truncate_prompt_tokens=4)
    assert scores(answer) == [4 / 1024]
    post(crosser, "/score", text_1="ab", text_2="def", use_activation=False)
    assert list(crosser.engine.pooled.values())[-1][1].is_activated is False


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_come_in_the_order_of_their_scores(crosser: RunningServer, path: str) -> None:
    documents: list[Any] = ["bb", {"text": "dddd"}, "a", "ccc"]
    answer = post(crosser, path, query="q", documents=documents).json()
    assert [(r["index"], r["document"]["text"]) for r in answer["results"]] == [
        (1, "dddd"),
        (3, "ccc"),
        (0, "bb"),
        (2, "a"),
    ]
    values = [r["relevance_score"] for r in answer["results"]]
    assert values == sorted(values, reverse=True)
    assert answer["usage"] == {"total_tokens": sum((5, 7, 4, 6))}
    answer = post(crosser, path, query="q", documents=documents, top_n=2, return_documents=False)
    assert [list(r) for r in answer.json()["results"]] == [["index", "relevance_score"]] * 2
    assert len(post(crosser, path, query="q", documents=documents, top_n=0).json()["results"]) == 4
    assert len(post(crosser, path, query="q", documents=documents, top_n=9).json()["results"]) == 4


def test_reranking_by_embeddings(embedder: RunningServer) -> None:
    documents = ["a", "zz", "hello there"]
    results = post(embedder, "/rerank", query="hello", documents=documents).json()["results"]
    expected = sorted(documents, key=lambda text: -cosine("hello", text))
    assert [r["document"]["text"] for r in results] == expected
    assert results[0]["relevance_score"] == pytest.approx(cosine("hello", expected[0]), abs=1e-6)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/score", {"text_1": [], "text_2": "a"}, "text_1"),
        ("/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/score", {"text_1": ["a", "b"], "text_2": "c"}, "text_1"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"] * 3}, "text_1"),
        ("/score", {"text_1": "a", "text_2": ["c"] * 2049}, "text_2"),
        ("/score", {"text_1": "a", "text_2": [1]}, "text_2[0]"),
        ("/score", {"text_1": "a"}, "text_2"),
        ("/score", {"text_1": "a", "text_2": ["b", "c" * 2100]}, "text_2[1]"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ("/rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents[0]"),
        ("/rerank", {"query": ["a"], "documents": ["b"]}, "query"),
        ("/rerank", {"query": "a", "documents": ["b", "c" * 2100]}, "documents[1]"),
        (
            "/rerank",
            {"query": "a", "documents": ["b"], "max_tokens_per_doc": 5},
            "max_tokens_per_doc",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["embedder", "crosser"])
def test_bad_fields_are_refused_by_name(
    request: pytest.FixtureRequest, kind: str, path: str, fields: dict[str, Any], param: str
) -> None:
    server: RunningServer = request.getfixturevalue(kind)
    found = error_of(post(server, path, **fields))["param"]
    assert str(found).startswith(param)
    assert not server.engine.pooled


def test_a_cosine_needs_lengths_of_one(embedder: RunningServer) -> None:
    response = post(embedder, "/score", text_1="a", text_2="b", use_activation=False)
    assert error_of(response)["param"] == "use_activation"


def test_a_classifier_of_several_labels_scores_nothing(
    serve: Callable[..., RunningServer],
) -> None:
    server = serve(engine=of_tasks("classify"))
    error = error_of(post(server, "/score", text_1="a", text_2="b"))
    assert error["code"] == "task_not_supported"
    assert "cannot score" in error["message"]
