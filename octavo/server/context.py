"""What the handlers share: the engine, the encoder, names, metrics. Made once, then read only."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from octavo.engine.admission import check_task
from octavo.errors import ModelNotServedError
from octavo.protocol.decode import decode
from octavo.server.http import read_body
from octavo.server.lifecycle import Lifecycle

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec
    from starlette.requests import Request

    from octavo.config import ServerConfig
    from octavo.engine.interface import EngineClient
    from octavo.observability.metrics import Metrics
    from octavo.server.parsing import AnswerReading
    from octavo.server.prompts import PromptEncoder, TokenizerLike
    from octavo.server.server_state import ServerState
    from octavo.types import Task

_T = TypeVar("_T", bound="msgspec.Struct")


@dataclass(frozen=True, slots=True)
class ServerContext:
    """One server's parts.

    Attributes:
        defaults: sampling defaults of the model, checked.
        config: without API keys' digests: those are `Authentication`'s alone.
        reading: how the model's answers are read.
        lifecycle: whether requests are taken, and how many there are.
        state: what outlives a request.
        started: when the server was made, seconds since the epoch.
    """

    engine: EngineClient
    tokenizer: TokenizerLike
    prompts: PromptEncoder
    config: ServerConfig
    metrics: Metrics
    defaults: Mapping[str, Any]
    reading: AnswerReading
    state: ServerState
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return self.config.served_model_names[0]

    def check_model(self, name: str) -> None:
        """Refuse other models' names.

        Raises:
            ModelNotServedError: this server does not serve it.
        """
        if name not in self.config.served_model_names:
            served = ", ".join(self.config.served_model_names)
            raise ModelNotServedError(
                f"The model {name[:200]!r} is not served here, use one of: {served}",
                param="model",
                code="model_not_found",
            )

    def check_task(self, task: Task) -> None:
        """Refuse what the engine was not started for.

        Raises:
            InvalidRequestError: it does something else; the message says what helps.
        """
        check_task(task, self.engine.info)

    async def read(self, request: Request, kind: type[_T]) -> _T:
        """The request's body as a `kind`.

        Raises:
            RequestError: too large, malformed, or of another shape.
        """
        return decode(await read_body(request, self.config.max_body_bytes), kind)


def context_of(request: Request) -> ServerContext:
    """The context of the application that got this request."""
    context: ServerContext = request.app.context
    return context
