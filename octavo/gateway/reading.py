"""An HTTP request into a `Call`: what routing, limits and budgets need of it. Pure.

A body is decoded once and checked only as far as it is read: the types of the fields that bound
cost, and what would be served wrongly by one of several backends. All else is the backend's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.gateway.config_routes import RoutingSection
from octavo.gateway.language import language_of
from octavo.gateway.model import ANYBODY, Call
from octavo.gateway.patterns import is_literal
from octavo.gateway.prompt import Prompt
from octavo.observability.trace_context import trace_context_of
from octavo.server.tags import MAX_TAGS, read_tags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.gateway.config import GatewayConfig
    from octavo.gateway.model import KeyInfo, Route

MAX_MODEL_LEN = 256
MAX_COUNT = 2**31 - 1

_TOKEN_FIELDS: dict[Route, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "messages": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "embeddings": (),
    "score": (),
    "rerank": (),
}
"""By which names callers bound an answer's length; none: there is no text to bound."""

_ELSEWHERE = {
    "previous_response_id": "send the whole conversation in input",
    "conversation": "send the whole conversation in input",
    "prompt": "send the prompt itself in instructions and input",
    "background": "leave it out: what runs on could not be fetched",
}
"""Fields of `/v1/responses` that mean something which one backend keeps, and of unknown length."""

_READ = frozenset(
    (
        "model", "stream", "stream_options", "n", "best_of", "max_tokens", "max_completion_tokens",
        "max_output_tokens", "metadata", "user", "safety_identifier", "cache_salt", "messages",
        "system", "instructions", "input", "prompt", "suffix", "query", "documents", "text_1",
        "text_2", "tools", "functions", "tool_choice", "text", "response_format", "output_config",
        "output_format", "structured_outputs", "logprobs", "top_logprobs", *_ELSEWHERE,
    )
)  # fmt: skip
"""Fields that decide what is checked, counted or changed here."""

_decode = msgspec.json.Decoder().decode


class ReadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What of the configuration reading depends on.

    Attributes:
        headers: names that rules look at, lower case.
        tells_language: whether a rule asks for a language.
    """

    routing: RoutingSection = RoutingSection()
    headers: frozenset[bytes] = frozenset()
    tells_language: bool = False


def read_settings(config: GatewayConfig) -> ReadSettings:
    """What of a configuration reading depends on."""
    names = {name.lower().encode() for rule in config.rules for name in rule.when.headers}
    return ReadSettings(
        routing=config.routing,
        headers=frozenset(names),
        tells_language=any(rule.when.languages for rule in config.rules),
    )


def read_call(
    body: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    *,
    route: Route,
    path: str,
    request_id: str,
    parent_id: str = "",
    arrived: float,
    key: KeyInfo = ANYBODY,
    settings: ReadSettings,
) -> Call:
    """A request, read.

    Args:
        body: JSON.
        headers: as ASGI has them, names in lower case.
        route: what is asked for.
        path: as the backend gets it.
        request_id: of the HTTP request, unique.
        parent_id: what the caller knows it by, where that is another one.
        arrived: reading of `time.perf_counter()`.
        key: who calls.
        settings: see `read_settings`.

    Raises:
        InvalidRequestError: the body is no JSON object, or a field that is read here is wrong;
            names it.
    """
    fields = decode_body(body)
    routing = settings.routing
    _check_spelling(fields)
    model = _model(fields)
    _check_elsewhere(route, fields)
    max_tokens = _max_tokens(route, fields)
    stream = _flag(fields, "stream")
    prompt = Prompt(routing.tokens_per_image)
    try:
        prompt.read(route, fields)
    except RecursionError:
        raise InvalidRequestError("The request body is nested too deeply") from None
    tags = _tags(fields, headers, route)
    tenant = key.tenant or (tags.tenant if routing.trust_tenant else "")
    return Call(
        request_id=request_id,
        parent_id=parent_id,
        arrived=arrived,
        route=route,
        path=path,
        model=model,
        stream=stream,
        body=fields,
        headers=_headers(headers, settings.headers),
        num_prompt_chars=prompt.num_chars,
        num_prompt_tokens=prompt.num_tokens(by_bytes=routing.prompt_tokens == "bytes"),
        block_hashes=prompt.hashes(
            tenant.encode(), block_bytes=routing.block_bytes, max_blocks=routing.max_blocks
        ),
        has_tools=_has_tools(fields),
        has_schema=_has_schema(fields),
        has_images=prompt.has_images,
        max_tokens=max_tokens,
        num_choices=_num_choices(route, fields) * prompt.num_prompts if max_tokens != 0 else 1,
        key=key,
        feature=tags.feature or next(filter(is_literal, key.features), ""),
        tenant=tenant,
        session_id=tags.session_id,
        tags=_with_key(tags.tags, key.tags),
        language=language_of(prompt.last_user) if settings.tells_language else "",
        traceparent=_traceparent(headers),
        includes_cost=tags.includes_cost,
    )


def decode_body(body: bytes) -> dict[str, Any]:
    """A body as an object.

    Raises:
        InvalidRequestError: it is none; says where it ends to be JSON.
    """
    try:
        value = _decode(body)
        if isinstance(value, dict):
            return value
        reason = "it must be an object"
    except msgspec.DecodeError as exc:
        reason = str(exc).removeprefix("JSON is malformed: ")
    except UnicodeDecodeError as exc:
        reason = f"a string is not UTF-8 ({exc.reason})"
    except RecursionError:
        reason = "it is nested too deeply"
    raise InvalidRequestError(f"The request body is not valid JSON: {reason}")


def _check_spelling(fields: dict[str, Any]) -> None:
    """Refuse names that some backends take for a field that is checked here: JSON in Go, Ollama's
    among others, does not tell `Model` from `model`, and the last one counts.

    Raises:
        InvalidRequestError: there is one; says how it is spelled.
    """
    for name in fields:
        if name.islower() and name.isascii():
            continue
        meant = name.casefold()  # as Go: the Kelvin sign is a k, the long s is an s
        if meant != name and meant in _READ:
            raise InvalidRequestError(f"{name[:64]!r} is no field: write {meant}", param=meant)


def _model(fields: dict[str, Any]) -> str:
    model = fields.get("model")
    if model is None:
        raise InvalidRequestError("Missing required field: model", param="model")
    if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_LEN or not model.isprintable():
        raise InvalidRequestError(
            f"model must be a name of at most {MAX_MODEL_LEN} printable characters", param="model"
        )
    return model


def _check_elsewhere(route: Route, fields: dict[str, Any]) -> None:
    if route != "responses":
        return
    for name, advice in _ELSEWHERE.items():
        if fields.get(name):
            raise InvalidRequestError(
                f"{name} is not supported by this gateway, which keeps no conversations: {advice}",
                param=name,
            )


def _count(fields: dict[str, Any], name: str, *, least: int) -> int | None:
    """A field that is a number of things.

    Raises:
        InvalidRequestError: it is not.
    """
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= MAX_COUNT:
        raise InvalidRequestError(
            f"{name} must be a whole number from {least} to {MAX_COUNT}", param=name
        )
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be true or false", param=name)
    return bool(value)


def _max_tokens(route: Route, fields: dict[str, Any]) -> int | None:
    """The bound of an answer's length; 0 where an answer has no text; None: there is no bound.

    Raises:
        InvalidRequestError: it is no number, or two names contradict each other.
    """
    names = _TOKEN_FIELDS[route]
    if not names:
        return 0
    given = {_count(fields, name, least=0) for name in names} - {None}
    if len(given) > 1:
        raise InvalidRequestError(
            f"{' and '.join(names)} contradict each other: give one of them", param=names[-1]
        )
    return given.pop() if given else None


def _num_choices(route: Route, fields: dict[str, Any]) -> int:
    """Answers per prompt, those among which the best is chosen included."""
    if route not in ("chat", "completions"):
        return 1
    counts = [_count(fields, name, least=1) or 1 for name in ("n", "best_of")]
    return max(counts)


def _has_tools(fields: dict[str, Any]) -> bool:
    choice = fields.get("tool_choice")
    is_off = choice == "none" or (isinstance(choice, dict) and choice.get("type") == "none")
    return bool(fields.get("functions")) or (bool(fields.get("tools")) and not is_off)


def _has_schema(fields: dict[str, Any]) -> bool:
    """Whether the answer must have a form: a JSON schema, JSON at all, or a grammar."""
    for path in (("response_format",), ("text", "format"), ("output_config", "format")):
        value: Any = fields
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, dict) and value.get("type") not in (None, "text"):
            return True
    names = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
    return any(fields.get(name) is not None for name in (*names, "output_format"))


def _tags(fields: dict[str, Any], headers: Sequence[tuple[bytes, bytes]], route: Route) -> Any:
    """What a request says of itself; of metadata, what has the shape of tags."""
    metadata = fields.get("metadata")
    user = fields.get("safety_identifier") or fields.get("user")
    if not isinstance(metadata, dict):
        metadata = None
    elif route == "messages":
        user, metadata = metadata.get("user_id"), None
    return read_tags(headers, metadata=metadata, user=user if isinstance(user, str) else None)


def _with_key(tags: dict[str, str], own: dict[str, str]) -> dict[str, str]:
    """A caller's tags with the key's over them, no more than a request may have."""
    if not own:
        return tags
    room = max(0, MAX_TAGS - len(own))
    kept = [(name, value) for name, value in tags.items() if name not in own]
    return {**dict(kept[:room]), **own}


def _headers(headers: Sequence[tuple[bytes, bytes]], names: frozenset[bytes]) -> dict[str, str]:
    """Those that rules look at; the first of several."""
    found: dict[str, str] = {}
    if names:
        for name, value in headers:
            if name in names:
                found.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    return found


def _traceparent(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The caller's place in its trace; empty: it says none, or what is none."""
    if not any(name == b"traceparent" for name, _ in headers):
        return ""
    context = trace_context_of(headers)
    return "" if context is None else str(context.parent)
