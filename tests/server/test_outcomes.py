"""`POST /v1/outcomes` into a real ledger, and what is answered when there is none or it fails."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import openai
import pytest

from octavo.ledger.writer import LedgerWriter
from octavo.server import outcomes as module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.server.conftest import RunningServer

GOOD: dict[str, Any] = {"name": "ticket_resolved", "success": True, "request_id": "abc"}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def writer(ledger: Path) -> Iterator[LedgerWriter]:
    writer = LedgerWriter(str(ledger))
    writer.start()
    yield writer
    writer.close()


@pytest.fixture
def keeping(server: RunningServer, writer: LedgerWriter) -> RunningServer:
    """A server that keeps a ledger."""
    server.app.context.usage.sink = writer
    return server


def rows(ledger: Path, columns: str = "id, name, success, value_nano") -> list[Any]:
    with sqlite3.connect(ledger) as connection:
        found = connection.execute(f"SELECT {columns} FROM outcomes ORDER BY seq").fetchall()
    connection.close()
    return found


def test_an_outcome_is_on_disk_when_it_is_answered(keeping: RunningServer, ledger: Path) -> None:
    answer = keeping.client.post("/v1/outcomes", json={**GOOD, "id": "o1", "value": "4.25"})
    assert answer.status_code == 200
    assert answer.json() == {
        "object": "list",
        "data": [{"object": "outcome", "id": "o1", "name": "ticket_resolved"}],
    }
    assert rows(ledger) == [("o1", "ticket_resolved", 1, 4_250_000_000)]
    again = keeping.client.post("/v1/outcomes", json={**GOOD, "id": "o1", "success": False})
    assert again.status_code == 200
    assert rows(ledger) == [("o1", "ticket_resolved", 1, 4_250_000_000)]  # the first one stays


def test_a_list(keeping: RunningServer, ledger: Path) -> None:
    """All or none, in order; ids that are left out are made, each another one."""
    many = [{**GOOD, "value": n} for n in range(300)]
    answer = keeping.client.post("/v1/outcomes", json={"outcomes": many})
    assert answer.status_code == 200
    ids = [outcome["id"] for outcome in answer.json()["data"]]
    assert len(set(ids)) == 300
    assert rows(ledger, "id, value_nano") == [(name, n * 10**9) for n, name in enumerate(ids)]
    wrong = [GOOD, {**GOOD, "value": "much"}]
    answer = keeping.client.post("/v1/outcomes", json={"outcomes": wrong})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "outcomes[1].value")
    assert len(rows(ledger)) == 300


def test_the_request_that_it_names(keeping: RunningServer, ledger: Path) -> None:
    """The id that answers carry; ids, sessions and traces that nobody knows are taken as well."""
    served = keeping.completion()
    request_id = served.headers["x-request-id"]
    for target in (
        {"request_id": request_id},
        {"session_id": "nobody's"},
        {"trace_id": "0AF7651916CD43DD8448EB211C80319C"},
    ):
        fields = {"name": "n", "success": False, **target}
        assert keeping.client.post("/v1/outcomes", json=fields).status_code == 200
    assert rows(ledger, "request_id, session_id, trace_id") == [
        (request_id, "", ""),
        ("", "nobody's", ""),
        ("", "", "0af7651916cd43dd8448eb211c80319c"),
    ]


def test_with_the_official_client(keeping: RunningServer, ledger: Path) -> None:
    """OpenAI's client sends to paths that it has no name for."""
    with openai.OpenAI(base_url=f"{keeping.url}/v1", api_key="-", max_retries=0) as client:
        answer = client.post("/outcomes", body=GOOD, cast_to=object)
        with pytest.raises(openai.BadRequestError) as caught:
            client.post("/outcomes", body={**GOOD, "sucess": True}, cast_to=object)
    assert isinstance(answer, dict)
    assert rows(ledger, "id") == [(answer["data"][0]["id"],)]
    assert (caught.value.param, "did you mean success" in str(caught.value)) == ("sucess", True)


def test_keys_are_asked_for(serve: Callable[..., RunningServer], writer: LedgerWriter) -> None:
    server = serve(api_keys=("sk-1",))
    server.app.context.usage.sink = writer
    assert server.client.post("/v1/outcomes", json=GOOD).status_code == 401
    headers = {"Authorization": "Bearer sk-1"}
    assert server.client.post("/v1/outcomes", json=GOOD, headers=headers).status_code == 200


def test_without_a_ledger(server: RunningServer) -> None:
    server.app.context.usage.sink = None
    answer = server.client.post("/v1/outcomes", json=GOOD)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_ledger")
    assert "--ledger URL" in answer.json()["error"]["message"]


class Broken:
    """A writer whose disk is full, or slow."""

    def __init__(self, *, is_slow: bool) -> None:
        self.num_lost = 0
        self.is_slow = is_slow

    def put(self, outcome: object) -> None:
        self.num_lost += not self.is_slow

    async def flush(self, timeout_s: float = 10.0) -> bool:
        return not self.is_slow


@pytest.mark.parametrize("is_slow", [False, True])
def test_what_may_be_lost_is_told(server: RunningServer, is_slow: bool) -> None:
    server.app.context.usage.sink = Broken(is_slow=is_slow)
    answer = server.client.post("/v1/outcomes", json=GOOD)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_kept")
    assert answer.headers["retry-after"] == str(module.RETRY_S)
