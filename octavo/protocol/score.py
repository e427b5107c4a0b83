"""Wire types of `/score` in vLLM's shape, and of `/rerank` in Jina's and Cohere's."""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.decode import Int32
from octavo.protocol.pooling import Answer, PoolingFields, check_number
from octavo.protocol.usage import CostFields


class ScoreRequest(PoolingFields, kw_only=True):
    """A request for how well texts go together.

    One `text_1` is compared with every `text_2`; as many as there are of `text_2` are compared
    one by one.
    """

    text_1: str | list[str]
    text_2: str | list[str]

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs to score, in order.

        Raises:
            InvalidRequestError: there are none, too many, or the numbers do not go together.
        """
        first = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        for name, texts in (("text_1", first), ("text_2", second)):
            if not texts:
                raise InvalidRequestError(f"{name} must not be empty", param=name)
            check_number(len(texts), name)
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            raise InvalidRequestError(
                f"text_1 holds {len(first)} texts and text_2 {len(second)}: give one text_1, or "
                "as many as text_2",
                param="text_1",
            )
        return list(zip(first, second, strict=True))


class Score(msgspec.Struct, kw_only=True):
    """One pair's score."""

    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreAnswer(Answer, kw_only=True):
    """Scores in the order of the pairs."""

    data: list[Score]


class RerankDocument(msgspec.Struct, forbid_unknown_fields=True):
    """A document as an object, and how an answer repeats it."""

    text: str


class RerankRequest(PoolingFields, kw_only=True):
    """A request to order documents by how well they go with a query.

    Attributes:
        query: one text.
        documents: texts, or objects with a `text`.
        top_n: most results; 0 or left out: all.
        return_documents: false leaves the documents' texts out of the results.
    """

    query: str
    documents: list[str | RerankDocument]
    top_n: Int32 | None = None
    return_documents: bool | None = None

    def texts(self) -> list[str]:
        """The documents' texts.

        Raises:
            InvalidRequestError: there are none or too many, or `top_n` is negative.
        """
        if not self.documents:
            raise InvalidRequestError("documents must not be empty", param="documents")
        check_number(len(self.documents), "documents")
        if self.top_n is not None and self.top_n < 0:
            raise InvalidRequestError(
                f"top_n must be at least 1, or 0 for all documents, got {self.top_n}",
                param="top_n",
            )
        return [item if isinstance(item, str) else item.text for item in self.documents]


class RerankResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One document's place in the order: the most relevant comes first.

    `index` is its place in the request.
    """

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankUsage(CostFields, frozen=True):
    """Tokens of the query with every document, summed."""

    total_tokens: int


class RerankAnswer(msgspec.Struct, kw_only=True):
    """The documents, the most relevant first."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RerankResult]
