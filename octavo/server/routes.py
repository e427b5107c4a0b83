"""The table of routes: what each takes and gives. The application and `/openapi.json` are made of
it, so that they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.protocol import ollama as ollama_requests
from octavo.protocol import ollama_answers
from octavo.protocol.anthropic import CountTokensRequest, MessagesRequest
from octavo.protocol.anthropic_answers import AnthropicAnswer, AnthropicEvent, TokenCount
from octavo.protocol.batches import Batch, BatchList, BatchRequest
from octavo.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from octavo.protocol.completions import Completion, CompletionRequest
from octavo.protocol.dashboard import DashboardData
from octavo.protocol.embeddings import EmbeddingAnswer, EmbeddingRequest
from octavo.protocol.files import FileDeleted, FileList, FileObject
from octavo.protocol.models import ModelCard, ModelList
from octavo.protocol.outcomes import OutcomeReceipts, OutcomeRequest
from octavo.protocol.pooling import (
    ClassificationAnswer,
    ClassificationRequest,
    PoolingAnswer,
    PoolingRequest,
)
from octavo.protocol.responses import (
    ItemList,
    Response,
    ResponseDeleted,
    ResponseEvent,
    ResponseRequest,
)
from octavo.protocol.score import RerankAnswer, RerankRequest, ScoreAnswer, ScoreRequest
from octavo.protocol.status import Load, Status, Version
from octavo.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from octavo.server import health, ollama_models
from octavo.server.batches import (
    cancel_batch,
    create_batch,
    list_batches,
    retrieve_batch,
)
from octavo.server.chat import create_chat_completion
from octavo.server.completions import create_completion
from octavo.server.dashboard.handlers import dashboard_data, dashboard_page
from octavo.server.dialect import ANTHROPIC, OLLAMA, OPENAI
from octavo.server.dialect_responses import RESPONSES
from octavo.server.embeddings import create_embeddings
from octavo.server.files import (
    create_file,
    delete_file,
    file_content,
    list_files,
    retrieve_file,
)
from octavo.server.messages import count_tokens, create_message
from octavo.server.models import list_models, retrieve_model
from octavo.server.ollama import ollama_chat, ollama_generate
from octavo.server.ollama_embed import ollama_embed, ollama_embeddings
from octavo.server.openapi import openapi
from octavo.server.outcomes import create_outcomes
from octavo.server.pooling import classify, create_pooling
from octavo.server.responses import (
    cancel_response,
    create_response,
    delete_response,
    list_input_items,
    retrieve_response,
)
from octavo.server.score import rerank, score
from octavo.server.tokenize import detokenize, tokenize

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from octavo.server.dialect import Dialect


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One route.

    Attributes:
        path: as Starlette writes it.
        handler: answers; the first line of its docstring is the operation's summary.
        methods: served; GET brings HEAD along.
        request: type of the JSON body; None: there is none.
        answer: type of the JSON answer; None: plain text, or JSON of no fixed shape.
        media_type: of the answer.
        event: type of the events of a streamed answer, or a union; None: it is never streamed.
        statuses: of errors, beyond those that the other fields tell of.
        dialect: how its errors and streams are framed.
        is_open: needs no API key.
        is_operational: answered also while the server drains, and not part of its load.
    """

    path: str
    handler: Callable[[Request], Awaitable[ASGIApp]]
    methods: tuple[str, ...] = ("GET",)
    request: type[Any] | None = None
    answer: type[Any] | None = None
    media_type: str = "application/json"
    event: Any = None
    statuses: tuple[int, ...] = ()
    dialect: Dialect = OPENAI
    is_open: bool = False
    is_operational: bool = False


POOLING_STATUSES = (404, 500, 504)


def _probe(path: str, handler: Callable[[Request], Awaitable[ASGIApp]], *methods: str) -> Endpoint:
    return Endpoint(
        path=path,
        handler=handler,
        methods=methods or ("GET",),
        answer=Status,
        statuses=(503,),
        is_open=True,
        is_operational=True,
    )


def _ollama(
    path: str,
    handler: Callable[[Request], Awaitable[ASGIApp]],
    answer: type[Any],
    request: type[Any] | None = None,
    *,
    event: Any = None,
) -> Endpoint:
    return Endpoint(
        path=path,
        handler=handler,
        methods=("GET",) if request is None else ("POST",),
        request=request,
        answer=answer,
        event=event,
        statuses=() if request is None else POOLING_STATUSES,
        dialect=OLLAMA,
    )


def _refusal(path: str, method: str = "POST") -> Endpoint:
    handler = ollama_models.ollama_refusal
    return Endpoint(path=path, handler=handler, methods=(method,), statuses=(400,), dialect=OLLAMA)


OLLAMA_ENDPOINTS = (
    Endpoint(
        path="/",
        handler=ollama_models.ollama_root,
        media_type="text/plain",
        is_operational=True,
    ),
    _ollama(
        "/api/chat",
        ollama_chat,
        ollama_answers.OllamaChatAnswer,
        ollama_requests.OllamaChatRequest,
        event=ollama_answers.OllamaChatAnswer,
    ),
    _ollama(
        "/api/generate",
        ollama_generate,
        ollama_answers.OllamaGenerateAnswer,
        ollama_requests.OllamaGenerateRequest,
        event=ollama_answers.OllamaGenerateAnswer,
    ),
    _ollama(
        "/api/embed",
        ollama_embed,
        ollama_answers.OllamaEmbedAnswer,
        ollama_requests.OllamaEmbedRequest,
    ),
    _ollama(
        "/api/embeddings",
        ollama_embeddings,
        ollama_answers.OllamaEmbeddingsAnswer,
        ollama_requests.OllamaEmbeddingsRequest,
    ),
    _ollama(
        "/api/show",
        ollama_models.ollama_show,
        ollama_answers.OllamaShow,
        ollama_requests.OllamaShowRequest,
    ),
    _ollama("/api/tags", ollama_models.ollama_tags, ollama_answers.OllamaModels),
    _ollama("/api/ps", ollama_models.ollama_ps, ollama_answers.OllamaRunningModels),
    _ollama("/api/version", ollama_models.ollama_version, ollama_answers.OllamaVersion),
    _refusal("/api/pull"),
    _refusal("/api/push"),
    _refusal("/api/create"),
    _refusal("/api/copy"),
    _refusal("/api/delete", "DELETE"),
)

ENDPOINTS = (
    Endpoint(path="/v1/models", handler=list_models, answer=ModelList),
    Endpoint(
        path="/v1/models/{name:path}", handler=retrieve_model, answer=ModelCard, statuses=(404,)
    ),
    Endpoint(
        path="/v1/completions",
        handler=create_completion,
        methods=("POST",),
        request=CompletionRequest,
        answer=Completion,
        event=Completion,
        statuses=(404, 500),
    ),
    Endpoint(
        path="/v1/chat/completions",
        handler=create_chat_completion,
        methods=("POST",),
        request=ChatCompletionRequest,
        answer=ChatCompletion,
        event=ChatCompletionChunk,
        statuses=(404, 500),
    ),
    Endpoint(
        path="/v1/messages",
        handler=create_message,
        methods=("POST",),
        request=MessagesRequest,
        answer=AnthropicAnswer,
        event=AnthropicEvent,
        statuses=(404, 500),
        dialect=ANTHROPIC,
    ),
    Endpoint(
        path="/v1/messages/count_tokens",
        handler=count_tokens,
        methods=("POST",),
        request=CountTokensRequest,
        answer=TokenCount,
        statuses=(404,),
        dialect=ANTHROPIC,
    ),
    Endpoint(
        path="/v1/responses",
        handler=create_response,
        methods=("POST",),
        request=ResponseRequest,
        answer=Response,
        event=ResponseEvent,
        statuses=(404, 500),
        dialect=RESPONSES,
    ),
    Endpoint(
        path="/v1/responses/{response_id}",
        handler=retrieve_response,
        answer=Response,
        event=ResponseEvent,
        statuses=(400, 404),
        dialect=RESPONSES,
    ),
    Endpoint(
        path="/v1/responses/{response_id}",
        handler=delete_response,
        methods=("DELETE",),
        answer=ResponseDeleted,
        statuses=(400, 404),
    ),
    Endpoint(
        path="/v1/responses/{response_id}/cancel",
        handler=cancel_response,
        methods=("POST",),
        answer=Response,
        statuses=(400, 404),
    ),
    Endpoint(
        path="/v1/responses/{response_id}/input_items",
        handler=list_input_items,
        answer=ItemList,
        statuses=(400, 404),
    ),
    Endpoint(
        path="/v1/files",
        handler=create_file,
        methods=("POST",),
        answer=FileObject,
        statuses=(400, 408, 413),
    ),
    Endpoint(path="/v1/files", handler=list_files, answer=FileList, statuses=(400,)),
    Endpoint(
        path="/v1/files/{file_id}",
        handler=retrieve_file,
        answer=FileObject,
        statuses=(400, 404),
    ),
    Endpoint(
        path="/v1/files/{file_id}",
        handler=delete_file,
        methods=("DELETE",),
        answer=FileDeleted,
        statuses=(400, 404),
    ),
    Endpoint(
        path="/v1/files/{file_id}/content",
        handler=file_content,
        media_type="application/octet-stream",
        statuses=(400, 404),
    ),
    Endpoint(
        path="/v1/batches",
        handler=create_batch,
        methods=("POST",),
        request=BatchRequest,
        answer=Batch,
        statuses=(404,),
    ),
    Endpoint(path="/v1/batches", handler=list_batches, answer=BatchList, statuses=(400,)),
    Endpoint(
        path="/v1/batches/{batch_id}",
        handler=retrieve_batch,
        answer=Batch,
        statuses=(400, 404),
    ),
    Endpoint(
        path="/v1/batches/{batch_id}/cancel",
        handler=cancel_batch,
        methods=("POST",),
        answer=Batch,
        statuses=(400, 404),
    ),
    Endpoint(
        path="/v1/outcomes",
        handler=create_outcomes,
        methods=("POST",),
        request=OutcomeRequest,
        answer=OutcomeReceipts,
    ),
    Endpoint(
        path="/v1/embeddings",
        handler=create_embeddings,
        methods=("POST",),
        request=EmbeddingRequest,
        answer=EmbeddingAnswer,
        statuses=POOLING_STATUSES,
    ),
    Endpoint(
        path="/pooling",
        handler=create_pooling,
        methods=("POST",),
        request=PoolingRequest,
        answer=PoolingAnswer,
        statuses=POOLING_STATUSES,
    ),
    Endpoint(
        path="/classify",
        handler=classify,
        methods=("POST",),
        request=ClassificationRequest,
        answer=ClassificationAnswer,
        statuses=POOLING_STATUSES,
    ),
    *(
        Endpoint(
            path=path,
            handler=score,
            methods=("POST",),
            request=ScoreRequest,
            answer=ScoreAnswer,
            statuses=POOLING_STATUSES,
        )
        for path in ("/score", "/v1/score")
    ),
    *(
        Endpoint(
            path=path,
            handler=rerank,
            methods=("POST",),
            request=RerankRequest,
            answer=RerankAnswer,
            statuses=POOLING_STATUSES,
        )
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ),
    Endpoint(
        path="/tokenize",
        handler=tokenize,
        methods=("POST",),
        request=TokenizeRequest,
        answer=TokenizeResponse,
        statuses=(404,),
    ),
    Endpoint(
        path="/detokenize",
        handler=detokenize,
        methods=("POST",),
        request=DetokenizeRequest,
        answer=DetokenizeResponse,
        statuses=(404,),
    ),
    _probe("/health", health.health),
    _probe("/health/live", health.alive),
    _probe("/health/ready", health.ready),
    _probe("/ping", health.health, "GET", "POST"),
    Endpoint(path="/load", handler=health.load, answer=Load, is_operational=True),
    Endpoint(path="/version", handler=health.version, answer=Version, is_operational=True),
    Endpoint(
        path="/metrics",
        handler=health.metrics,
        media_type="text/plain",
        is_operational=True,
    ),
    Endpoint(
        path="/dashboard",
        handler=dashboard_page,
        media_type="text/html",
        is_open=True,
        is_operational=True,
    ),
    Endpoint(
        path="/dashboard/data", handler=dashboard_data, answer=DashboardData, is_operational=True
    ),
    Endpoint(path="/openapi.json", handler=openapi, is_operational=True),
    *OLLAMA_ENDPOINTS,
)
