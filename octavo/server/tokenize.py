"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from octavo.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from octavo.server.context import context_of
from octavo.server.http import json_response
from octavo.server.prompts import MAX_INLINE_CHARS, check_token_ids

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def tokenize(request: Request) -> Response:
    """Token ids of a text, or of messages as the model would see them.

    Raises:
        RequestError: the request cannot be served.
    """
    context = context_of(request)
    body = await context.read(request, TokenizeRequest)
    if body.model is not None:
        context.check_model(body.model)
    body.check()
    if body.messages is not None:
        ids = await context.prompts.encode_chat(
            body.messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            template_kwargs=body.chat_template_kwargs,
            add_special_tokens=bool(body.add_special_tokens),
        )
    else:
        ids = await context.prompts.encode(
            body.prompt or "",
            add_special_tokens=body.add_special_tokens is not False,
            param="prompt",
        )
    answer = TokenizeResponse(
        count=len(ids), max_model_len=context.engine.info.max_model_len, tokens=ids
    )
    if body.return_token_strs:
        answer.token_strs = [context.tokenizer.token_text(token_id) for token_id in ids]
    return json_response(answer)


async def detokenize(request: Request) -> Response:
    """The text of token ids, special tokens included.

    Raises:
        RequestError: the request cannot be served.
    """
    context = context_of(request)
    body = await context.read(request, DetokenizeRequest)
    if body.model is not None:
        context.check_model(body.model)
    check_token_ids(body.tokens, context.tokenizer.vocab_size, param="tokens")

    def decode() -> str:
        return context.tokenizer.decode(body.tokens, skip_special_tokens=False)

    is_short = len(body.tokens) <= MAX_INLINE_CHARS
    return json_response(
        DetokenizeResponse(decode() if is_short else await asyncio.to_thread(decode))
    )
