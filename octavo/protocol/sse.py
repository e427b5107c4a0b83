"""Server-sent events as OpenAI streams them: one JSON value per event, then `[DONE]`.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
"""The event that ends every stream."""

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: it shows that the stream lives, and readers skip it."""

_encoder = msgspec.json.Encoder()


def event(value: Any) -> bytes:
    """One event. JSON has no raw line breaks, so the value always fits on one `data` line."""
    return b"data: %b\n\n" % _encoder.encode(value)
