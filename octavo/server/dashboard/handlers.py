"""The two routes of the live page: the page, which tells nothing, and its numbers."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from starlette.responses import Response

from octavo.server.context import context_of
from octavo.server.http import json_response

if TYPE_CHECKING:
    from starlette.requests import Request

SCRIPTS = ("format.js", "chart.js", "tables.js", "page.js")
_STYLE, _SCRIPT = "/* style */", "/* script */"


async def dashboard_page(request: Request) -> Response:
    """The live page for a browser.

    It has no numbers in it and needs no key: the page asks for one where `/dashboard/data` does.
    """
    body, headers = _page()
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="text/html", headers=headers)


async def dashboard_data(request: Request) -> Response:
    """What the live page shows: the server's last minutes."""
    response = json_response(context_of(request).monitor.data())
    response.headers["cache-control"] = "no-store"
    return response


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The page and its headers, put together from the package's files when somebody asks first.

    Style and scripts are within it, so that it is one file wherever a proxy puts it, and the
    policy lets in these very texts and nothing else. It asks only the server that it came from.
    """
    folder = resources.files(__package__)

    def text(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    style = text("page.css")
    script = "\n".join(('"use strict";', *map(text, SCRIPTS)))
    page = text("page.html")
    assert page.count(_STYLE) == page.count(_SCRIPT) == 1
    body = page.replace(_STYLE, style).replace(_SCRIPT, script).encode()
    policy = (
        "default-src 'none'",
        f"script-src {_hash(script)}",
        f"style-src {_hash(style)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
    return body, {
        "content-security-policy": "; ".join(policy),
        "cache-control": "no-cache",
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
