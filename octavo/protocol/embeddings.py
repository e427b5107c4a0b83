"""Wire types of `/v1/embeddings`, in OpenAI's shape with vLLM's extras."""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.decode import Int32
from octavo.protocol.pooling import Answer, EncodingFormat, Input, PoolingFields


class EmbeddingRequest(PoolingFields, kw_only=True):
    """A request for embeddings.

    `normalize` is vLLM's older name for `use_activation`.
    """

    input: Input
    encoding_format: EncodingFormat | None = None
    dimensions: Int32 | None = None
    add_special_tokens: bool | None = None
    normalize: bool | None = None

    @property
    def is_normalized(self) -> bool | None:
        """Whether vectors get length 1; None: as the model does it.

        Raises:
            InvalidRequestError: both names are used, for different things.
        """
        if self.use_activation is None or self.normalize is None:
            return self.normalize if self.use_activation is None else self.use_activation
        if self.use_activation != self.normalize:
            raise InvalidRequestError(
                "normalize and use_activation mean the same and contradict each other",
                param="normalize",
            )
        return self.normalize


class Embedding(msgspec.Struct, kw_only=True):
    """One input's vector: numbers, or base64 of float32, least significant byte first."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingAnswer(Answer, kw_only=True):
    """Vectors in the order of the inputs."""

    data: list[Embedding]
