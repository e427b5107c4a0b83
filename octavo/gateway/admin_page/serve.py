"""The admin page's routes: files, which tell nothing and need no key.

What the page shows it asks of `/admin/v1`, with the admin key that its user types in. The key goes
along as a header that the page itself sets, never as a cookie: another site's page cannot make a
browser send it, so that there is nothing to forge.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from octavo.errors import NotFoundError
from octavo.server.errors import MAX_QUOTED_PATH

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

PAGE_PATH = "/admin"
ASSETS_PATH = "/admin/assets"

_LIVE_PAGE = "octavo.server.dashboard"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class _File(NamedTuple):
    body: bytes
    headers: dict[str, str]


def page_routes(is_on: Callable[[], bool]) -> list[Route]:
    """Routes of the page, to be mounted outside of the callers' authentication.

    Args:
        is_on: whether there is anything to administer; else there is no page.
    """

    async def page(request: Request) -> Response:
        return _answer(request, "index.html")

    async def to_page(request: Request) -> Response:
        # Relative: a proxy may have put the page anywhere.
        return RedirectResponse("../admin")

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        return _answer(request, "" if name == "index.html" else name)

    def _answer(request: Request, name: str) -> Response:
        file = _files().get(name)
        if file is None or not is_on():
            path = request.url.path[:MAX_QUOTED_PATH]
            raise NotFoundError(f"No such route: GET {path}", code="unknown_url")
        if request.headers.get("if-none-match") == file.headers["etag"]:
            return Response(status_code=304, headers=file.headers)
        return Response(file.body, headers=file.headers)

    return [
        Route(PAGE_PATH, page, methods=["GET"]),
        Route(f"{PAGE_PATH}/", to_page, methods=["GET"]),
        Route(f"{ASSETS_PATH}/{{name}}", asset, methods=["GET"]),
    ]


@cache
def _files() -> dict[str, _File]:
    """All files by name, read when somebody asks first.

    The look, and how numbers are written, are the live page's: two files of it become `base.css`
    and a module `format.js`.
    """
    own = resources.files(__package__)
    live = resources.files(_LIVE_PAGE)
    texts = {
        path.name: path.read_text(encoding="utf-8")
        for path in own.iterdir()
        if path.name.endswith(tuple(_TYPES))
    }
    names = "NONE, digits, format, element, svg, byId, words"
    numbers = live.joinpath("format.js").read_text(encoding="utf-8")
    texts["format.js"] = f"{numbers}\nexport {{ {names} }};\n"
    texts["base.css"] = live.joinpath("page.css").read_text(encoding="utf-8")
    return {name: _file(name, text.encode()) for name, text in texts.items()}


def _file(name: str, body: bytes) -> _File:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    kind = _TYPES[name[name.rindex(".") :]]
    return _File(body, {**_HEADERS, "content-type": kind, "etag": etag})
