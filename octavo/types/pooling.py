"""Texts that become vectors instead of more text: what is asked, planned, computed and answered."""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.types.metering import Charge
from octavo.types.outputs import FinishReason

Task = Literal["generate", "embed", "classify", "score"]
"""What an engine does: tokens after a prompt; a vector for a text; probabilities of labels; one
number for a pair of texts (a cross-encoder). Embeddings score pairs too, by their cosine."""

PoolingType = Literal["mean", "cls", "last"]
"""Which of a text's hidden states its vector is: their mean, the first one, or the last one."""


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True):
    """What to make of a text, instead of more text.

    Attributes:
        task: one of the engine's tasks, not `generate`.
        dimensions: keep this many leading numbers of an embedding; None: all.
        is_activated: an embedding gets length 1, labels' logits become probabilities; None: as the
            model does it.
        second_start: where the second text of a pair begins, for models that are told by token
            types; None: there is one text.
    """

    task: Task = "embed"
    dimensions: int | None = None
    is_activated: bool | None = None
    second_start: int | None = None


class PoolingPlan(msgspec.Struct, array_like=True):
    """Texts that are pooled together: whole ones, in any order.

    Attributes:
        step_id: rises by one with each plan.
        token_ids: of each text, at least one.
        params: parallel to it.
    """

    step_id: int
    token_ids: list[list[int]]
    params: list[PoolingParams]

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(map(len, self.token_ids))


class PoolingResult(msgspec.Struct, array_like=True):
    """What came of a `PoolingPlan`.

    Attributes:
        step_id: the plan's.
        vectors: parallel to the plan's texts: float32, least significant byte first.
        device_ns: duration of the step on the device, nanoseconds.
    """

    step_id: int
    vectors: list[bytes]
    device_ns: int


class Pooled(msgspec.Struct, frozen=True, kw_only=True):
    """How a request for a vector ended, as `AsyncEngine.pool` returns it.

    Attributes:
        vector: float32, least significant byte first; empty unless `finish_reason` is `stop`.
        finish_reason: `stop`, or why there is no vector.
        error: a message, when `finish_reason` is `error`.
        charge: device time it cost, where the engine ended it and meters; see `Delta`.
    """

    vector: bytes = b""
    finish_reason: FinishReason = "stop"
    error: str | None = None
    charge: Charge | None = None


class PoolingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What vectors an engine makes.

    Attributes:
        pooling_type: how hidden states become one.
        num_dimensions: length of a vector; of a classifier, its number of labels.
        is_normalized: whether embeddings have length 1 unless a request asks otherwise.
        is_matryoshka: whether embeddings may be cut (`PoolingParams.dimensions`).
        matryoshka_dimensions: lengths to which they may be cut; empty: any.
        labels: of a classifier, in the order of its vector; empty where they have no names.
        has_token_types: whether a pair's texts are told apart by token types.
        lowercases: whether texts are to be put into lower case before they are encoded.
    """

    pooling_type: PoolingType
    num_dimensions: int
    is_normalized: bool = False
    is_matryoshka: bool = False
    matryoshka_dimensions: list[int] = []
    labels: list[str] = []
    has_token_types: bool = False
    lowercases: bool = False
