"""Alerts of budgets: once a period, whoever sees it, and webhooks that are well or are not."""

from __future__ import annotations

import asyncio
import hmac
import json
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from octavo.errors import BudgetExceededError
from octavo.gateway import budgets_alerts
from octavo.gateway.budgets import BudgetBook
from octavo.gateway.budgets_store import BudgetStoreError, MemoryStore
from octavo.gateway.config_budgets import Webhook
from octavo.gateway.model import Amount
from octavo.gateway.secret import Secret
from tests.gateway.budget_stores import CENT, section_of, until
from tests.gateway.test_limits import call_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = "a-secret-of-the-webhook"


class Receiver:
    """A webhook's other side: answers these statuses in turn, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.requests.append((dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if self.statuses else 200
        headers = {"Location": self.url.replace("hook", "elsewhere")} if status == 307 else {}
        return web.Response(status=status, headers=headers)

    @property
    def told(self) -> list[Any]:
        """The thresholds that it was told of."""
        return [json.loads(body)["threshold"] for _, body in self.requests]


@asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(*statuses)
    app = web.Application()
    app.router.add_post("/{path}", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    receiver.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/hook"  # type: ignore[attr-defined]
    try:
        yield receiver
    finally:
        await runner.cleanup()


def book_of(url: str, store: MemoryStore | None = None, **webhook: Any) -> BudgetBook:
    hook = Webhook(url=Secret(url), secret=Secret(SECRET), **webhook)
    return BudgetBook(section_of(cents=100, webhooks={"ops": hook}), store)


async def spend(book: BudgetBook, cents: int) -> None:
    held = await book.reserve(call_of(), Amount(cents * CENT))
    await held.settle(Amount(cents * CENT))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets_alerts, "PAUSE_S", 0.01)
    monkeypatch.setattr(budgets_alerts, "CLAIM_S", 0.01)


async def test_each_threshold_is_told_of_once_by_whoever_is_first() -> None:
    store = MemoryStore()
    async with receiving() as receiver:
        books = [book_of(receiver.url, store) for _ in range(3)]
        await spend(books[0], 49)
        await asyncio.sleep(0.05)
        assert receiver.told == []
        await spend(books[1], 1)
        await spend(books[2], 1)
        await until(lambda: receiver.told == [0.5])
        await spend(books[0], 49)  # over two thresholds at a time
        for book in books:
            with pytest.raises(BudgetExceededError):
                await book.reserve(call_of(), Amount(2 * CENT))
        await until(lambda: len(receiver.told) == 4)
        for book in books:
            await spend(book, 0)
            await book.close()
        assert sorted(map(str, receiver.told)) == ["0.5", "0.8", "1.0", "None"]
        counts = [sum(book.alerts.num_alerts.values()) for book in books]
        assert sum(counts) == len(receiver.told)
        headers, body = receiver.requests[0]
        digest = hmac.new(SECRET.encode(), body, sha256).hexdigest()
        assert headers["X-Octavo-Signature"] == f"sha256={digest}"
        alert = json.loads(body)
        assert alert["event"] == "budget.threshold"
        assert (alert["budget"], alert["used_part"], alert["cost"]) == ("b", 0.5, "0.5")
        assert SECRET not in body.decode() + str(headers)


async def test_a_refusal_is_told_of_unless_it_would_never_fit() -> None:
    async with receiving() as receiver:
        book = book_of(receiver.url)
        with pytest.raises(BudgetExceededError):
            await book.reserve(call_of(), Amount(101 * CENT))
        held = await book.reserve(call_of(), Amount(60 * CENT))
        assert receiver.requests == []
        for _ in range(3):
            with pytest.raises(BudgetExceededError):
                await book.reserve(call_of(), Amount(60 * CENT))
        await until(lambda: receiver.requests)
        await held.settle(Amount())
        await book.close()
        assert [json.loads(body)["event"] for _, body in receiver.requests] == ["budget.refused"]


@pytest.mark.parametrize(
    ("statuses", "num_tries", "num_undelivered"),
    [((500, 429), 3, 0), ((503,) * 9, 4, 1), ((404,), 1, 1), ((307,), 1, 1)],
)
async def test_failures_are_tried_again_where_that_may_help(
    statuses: tuple[int, ...], num_tries: int, num_undelivered: int
) -> None:
    async with receiving(*statuses) as receiver:
        book = book_of(receiver.url, max_tries=4)
        await spend(book, 50)
        await until(lambda: len(receiver.requests) == num_tries)
        await book.close()
        assert len(receiver.requests) == num_tries
        assert book.alerts.num_undelivered == num_undelivered
        assert len({body for _, body in receiver.requests}) == 1


async def test_a_webhook_that_hangs_delays_nobody_and_its_url_stays_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    accepted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    book = book_of(f"http://127.0.0.1:{port}/services/T0KEN", timeout_s=0.05, max_tries=2)
    async with asyncio.timeout(2):
        await spend(book, 50)
        for _ in range(50):
            await spend(book, 0)
    await until(lambda: book.alerts.num_undelivered)
    await book.close()
    server.close()
    for writer in accepted:
        writer.transport.abort()
    await asyncio.sleep(0.01)
    assert accepted
    assert "webhook ops did not take the alert" in caplog.text
    assert "T0KEN" not in caplog.text


@pytest.mark.parametrize("is_allowed", [False, True])
async def test_names_that_lead_to_link_local_addresses_are_not_connected_to(
    is_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is looked at after the name is looked up: rebinding the name does not help."""
    import aiohttp

    async with receiving() as receiver:
        port = int(receiver.url.rpartition(":")[2].partition("/")[0])
        asked = []

        async def resolve(self: object, host: str, port: int = 0, family: Any = 0) -> Any:
            asked.append(host)
            return [
                {"hostname": host, "host": "127.0.0.1" if is_allowed else "169.254.169.254",
                 "port": port, "family": 2, "proto": 0, "flags": 0}
            ]  # fmt: skip

        monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
        book = book_of(f"http://hook.example:{port}/hook", max_tries=1, timeout_s=1.0)
        await spend(book, 50)
        await until(lambda: asked and (receiver.requests or book.alerts.num_undelivered))
        await book.close()
        assert len(receiver.requests) == is_allowed


async def test_alerts_wait_for_a_store_that_is_away() -> None:
    class Away(MemoryStore):
        num_failures = 3

        async def claim(self, *args: Any) -> bool:
            self.num_failures -= 1
            if self.num_failures >= 0:
                raise BudgetStoreError("gone")
            return await super().claim(*args)

    async with receiving() as receiver:
        book = book_of(receiver.url, Away())
        await spend(book, 50)
        await until(lambda: receiver.told == [0.5])
        await book.close()
