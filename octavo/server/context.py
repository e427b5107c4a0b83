"""What the handlers share: the engine, the encoder, names, metrics. Made once, then read only."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from octavo.engine.admission import check_task
from octavo.errors import InvalidRequestError, ModelNotServedError
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
    from octavo.protocol.generation import GenerationRequest
    from octavo.server.metering import UsageBook
    from octavo.server.parsing import AnswerReading
    from octavo.server.prompts import PromptEncoder, TokenizerLike
    from octavo.server.server_state import ServerState
    from octavo.types import SamplingParams, StructuredOutputs, Task

_T = TypeVar("_T", bound="msgspec.Struct")


class GrammarCheck(Protocol):
    """Tries grammars out; see `text.grammar.check.GrammarChecker`."""

    async def check_beside(self, spec: StructuredOutputs, /) -> None:
        """Return if the grammar can be used.

        Raises:
            InvalidRequestError: it cannot; `param` is `structured_outputs`.
        """
        ...


@dataclass(frozen=True, slots=True)
class ServerContext:
    """One server's parts.

    Attributes:
        defaults: sampling defaults of the model, checked.
        config: without API keys' digests: those are `Authentication`'s alone.
        reading: how the model's answers are read.
        usage: what requests used and cost.
        lifecycle: whether requests are taken, and how many there are.
        state: what outlives a request.
        grammars: tries out what outputs shall follow; None: the engine's word is enough.
        started: when the server was made, seconds since the epoch.
    """

    engine: EngineClient
    tokenizer: TokenizerLike
    prompts: PromptEncoder
    config: ServerConfig
    metrics: Metrics
    defaults: Mapping[str, Any]
    reading: AnswerReading
    usage: UsageBook
    state: ServerState
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    grammars: GrammarCheck | None = None
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

    async def check_grammar(self, params: SamplingParams, body: GenerationRequest) -> None:
        """Refuse what no output can follow, or only at too high a cost.

        Raises:
            InvalidRequestError: in the request's own words.
        """
        spec = params.structured_outputs
        if spec is None or self.grammars is None:
            return
        try:
            await self.grammars.check_beside(spec)
        except InvalidRequestError as exc:
            raise body.in_own_names(exc) from None

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
