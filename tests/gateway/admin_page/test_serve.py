"""The admin page's files: what they are served with, and that they ask nobody else."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.routing import Router

from octavo.gateway.admin_page import serve
from octavo.server.errors import ErrorAnswers
from octavo.server.scope import RequestScope

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class Page:
    """The page's routes alone."""

    def __init__(self) -> None:
        self.is_on = True
        routes = Router(serve.page_routes(lambda: self.is_on), redirect_slashes=False)
        self._app = RequestScope(ErrorAnswers(routes, {}), lambda: False, ())
        transport = httpx.ASGITransport(app=self)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://gateway")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # or the router answers errors itself
        await self._app(scope, receive, send)


@pytest.fixture
def page() -> Page:
    return Page()


async def test_files_need_no_key_and_let_nothing_else_in(page: Page) -> None:
    client = page.client
    index = await client.get("/admin")
    assert index.status_code == 200
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    names = re.findall(r'(?:href|src)="admin/assets/([\w.-]+)"', index.text)
    assert set(names) == {"base.css", "admin.css", "main.js"}
    seen, todo = {}, list(names)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        answer = await client.get(f"/admin/assets/{name}")
        assert answer.status_code == 200, name
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        seen[name] = answer.text
        todo += re.findall(r'from "\./([\w.-]+)"', answer.text)
    assert set(seen) | {"index.html"} == set(serve._files())  # none is left that nobody asks for
    policy = dict(
        rule.partition(" ")[::2] for rule in index.headers["content-security-policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    whole = "\n".join((index.text, *seen.values()))
    assert set(re.findall(r"(?:https?:)?//([\w.-]+\.\w+)", whole)) == {"www.w3.org"}
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localStorage|cookie\b.*=|url\("
    )
    assert not re.search(forbidden, whole)
    assert not re.search(r"<[^>]+\s(style|on\w+)=", index.text)
    again = await client.get("/admin", headers={"If-None-Match": index.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for name in ("index.html", "serve.py", "none.js", "..%2fserve.py"):
        assert (await client.get(f"/admin/assets/{name}")).status_code == 404
    slash = await client.get("/admin/")
    assert (slash.status_code, slash.headers["location"]) == (307, "../admin")


async def test_where_nobody_may_administer_there_is_no_page(page: Page) -> None:
    page.is_on = False
    for path in ("/admin", "/admin/assets/main.js"):
        answer = await page.client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
        assert (await page.client.post(path)).status_code == 405
    page.is_on = True
    assert (await page.client.head("/admin")).status_code == 200


def test_files_are_package_data() -> None:
    names = {path.name for path in resources.files("octavo.gateway.admin_page").iterdir()}
    assert {"index.html", "admin.css", "main.js", "keys.js", "playground.js"} <= names
