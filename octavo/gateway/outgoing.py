"""A call as a backend gets it: the body with the backend's own fields, the headers that we vouch
for. Nothing else of what the caller sent is handed on: no cookie, key, baggage or unknown header.

The body is not decoded: its top level is taken apart, and the values stay the bytes they were.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from octavo.gateway.config_backends import Backend, Kind
    from octavo.gateway.model import Call, Route
    from octavo.gateway.upstream import Upstream

MAX_ID_LEN = 120
"""Longer request ids are replaced by a digest upstream, as servers take 128 characters."""

_SALTED: dict[Kind, tuple[Route, ...]] = {
    "octavo": ("chat", "completions", "responses", "messages"),
    "vllm": ("chat", "completions", "responses"),
}
_WITH_USAGE: frozenset[Route] = frozenset(("chat", "completions"))
_OURS = frozenset(("feature", "tenant", "session", "session_id", "session.id"))
"""Members of `metadata` that an engine would take for the caller's word on these."""

_TAG_NAME = re.compile(r"(?!octavo\.)[a-z0-9][a-z0-9_.\-]{0,63}")

_Fields = dict[str, msgspec.Raw]
_fields_decoder = msgspec.json.Decoder(_Fields)
_options_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_encoder = msgspec.json.Encoder()
_TRUE = msgspec.Raw(b"true")


class Outgoing(msgspec.Struct, frozen=True):
    """One request, ready to be sent.

    Attributes:
        head: request line and headers, with the empty line. Holds the backend's key.
        drops_usage: the usage in the stream was asked for by us, not by the client.
    """

    head: bytes
    body: bytes
    drops_usage: bool

    def __repr__(self) -> str:
        return f"Outgoing({len(self.body)} bytes)"


def upstream_id_of(request_id: str, number: int) -> str:
    """The `X-Request-Id` of an attempt: the call's own for the first, a derived one for others."""
    if len(request_id) > MAX_ID_LEN:
        request_id = hashlib.sha256(request_id.encode()).hexdigest()
    return f"{request_id}.{number}" if number else request_id


def outgoing(call: Call, upstream: Upstream, model: str, body: bytes, upstream_id: str) -> Outgoing:
    """Make the request of one attempt.

    Args:
        call: what is asked, and who asks.
        upstream: where it goes.
        model: as the backend calls it.
        body: JSON, from the client or changed by the gateway.
        upstream_id: of the attempt.

    Raises:
        InvalidRequestError: the body is no JSON object.
    """
    backend = upstream.backend
    try:
        fields = _fields_decoder.decode(body)
    except msgspec.DecodeError as error:
        raise InvalidRequestError(f"the body must be a JSON object: {error}") from None
    fields["model"] = _raw(model)
    drops_usage = call.stream and call.route in _WITH_USAGE and _ask_for_usage(fields)
    drops_usage &= not call.includes_cost  # which is told there
    _put_salt(fields, call, backend)
    if backend.kind == "octavo" and "metadata" in fields:
        _strip_metadata(fields)
    data = _encoder.encode(fields)
    return Outgoing(_head(call, upstream, len(data), upstream_id), data, drops_usage)


def _ask_for_usage(fields: _Fields) -> bool:
    """Make the stream tell its usage; whether the client had not asked for it.

    Raises:
        InvalidRequestError: the options are none.
    """
    options = None
    if "stream_options" in fields:
        try:
            options = _options_decoder.decode(fields["stream_options"])
        except msgspec.DecodeError:
            raise InvalidRequestError(
                "stream_options must be an object", param="stream_options"
            ) from None
    options = options or {}
    if bytes(options.get("include_usage", b"")).strip() == b"true":
        return False
    options["include_usage"] = _TRUE
    fields["stream_options"] = _raw(options)
    return True


def _put_salt(fields: _Fields, call: Call, backend: Backend) -> None:
    """Part tenants in the engines' prefix caches, so that none can tell by the time an answer takes
    what another has asked. The caller's own salt parts further within his tenant.

    The key of the digest is the backend's own, so that all gateways of a backend agree.
    """
    given = fields.pop("cache_salt", None)
    if call.route not in _SALTED.get(backend.kind, ()):
        return
    whose = call.tenant or call.key.key_id
    if not whose and given is None:
        return
    key = backend.api_key.reveal().encode() if backend.api_key is not None else b"octavo"
    text = b"%b\0%b" % (whose.encode(), b"" if given is None else bytes(given))
    fields["cache_salt"] = _salt(key, text)


@lru_cache(maxsize=4096)
def _salt(key: bytes, text: bytes) -> msgspec.Raw:
    return _raw(hmac.digest(key, text, "sha256").hex())


def _strip_metadata(fields: _Fields) -> None:
    """Who asks and what for is told in headers, by us."""
    try:
        metadata = _options_decoder.decode(fields["metadata"])
    except msgspec.DecodeError:
        return  # the backend says what is wrong with it
    if metadata and not _OURS.isdisjoint(metadata):
        left = {name: value for name, value in metadata.items() if name not in _OURS}
        fields["metadata"] = _raw(left)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(value))


def _head(call: Call, upstream: Upstream, body_len: int, upstream_id: str) -> bytes:
    path = call.path.removeprefix("/v1")
    accept = "text/event-stream" if call.stream else "application/json"
    lines = [
        f"Content-Type: application/json\r\nContent-Length: {body_len}\r\nAccept: {accept}\r\n"
    ]
    _put(lines, "X-Request-Id", upstream_id)
    _put(lines, "traceparent", call.traceparent)
    if upstream.backend.kind == "octavo":
        lines.append("X-Octavo-Include-Cost: 1\r\n")
        _put(lines, "X-Octavo-Parent-Request", call.known_as)
        _put(lines, "X-Octavo-Feature", call.feature)
        _put(lines, "X-Octavo-Tenant", call.tenant)
        _put(lines, "X-Octavo-Session", call.session_id)
        tags = {name.lower(): value for name, value in call.tags.items()}
        for name, value in tags.items():
            if _TAG_NAME.fullmatch(name):
                # An engine refuses a tag that has two values; what is spelled so may be the key's
                _put(lines, f"X-Octavo-Tag-{name}", call.tags.get(name, value))
    lines.append("\r\n")
    begin = f"POST {upstream.address.path}{path} HTTP/1.1\r\n"
    return b"%b%b%b" % (begin.encode("ascii"), upstream.head, "".join(lines).encode())


def _put(lines: list[str], name: str, value: str) -> None:
    """Add a line. Values are checked where they come in, and once more here: a line's end in one
    would be a header of the caller's making, and is not printable.
    """
    if value and value.isprintable():
        lines.append(f"{name}: {value}\r\n")
