"""The admin API by HTTP: who may, what is told, what is refused and what is on record."""

from __future__ import annotations

import hmac
import logging
import shutil
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from octavo.errors import AuthenticationError
from octavo.gateway import admin
from octavo.ledger.database import DatabaseUnavailableError
from octavo.ledger.store import open_ledger
from tests.gateway.admin_app import ADMIN_KEY, AdminApp
from tests.gateway.test_limits import call_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(scope="module")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    open_ledger(str(path)).close()
    return path


@pytest.fixture
async def app(empty_ledger: Path, tmp_path: Path) -> AsyncIterator[AdminApp]:
    app = AdminApp(f"sqlite:///{shutil.copy(empty_ledger, tmp_path / 'ledger.db')}")
    await app.book.start()
    yield app
    await app.book.close()
    await app.limits.close()
    assert app.store is not None
    app.store.close()


def client_of(app: AdminApp, key: str | None = ADMIN_KEY) -> httpx.AsyncClient:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gw/admin/v1", headers=headers
    )


@pytest.fixture
async def client(app: AdminApp) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


async def test_a_keys_whole_life(app: AdminApp, client: httpx.AsyncClient) -> None:
    body = {
        "name": "bot", "tenant": "t", "team": "red", "features": ["chat"], "models": ["small*"],
        "routes": ["chat"], "tags": {"a": "b"}, "max_tokens": 100, "default_max_tokens": 10,
        "requires_max_tokens": True, "limits": ["gold"], "budgets": ["month"],
        "expires": "2099-01-31T01:00:00+01:00",
    }  # fmt: skip
    answer = await client.post("/keys", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    key, key_id = made.pop("key"), made["id"]
    assert made["status"] == "active"
    assert made["expires"] == "2099-01-31T00:00:00Z"
    assert {name: made[name] for name in body if name != "expires"} == {
        name: value for name, value in body.items() if name != "expires"
    }
    assert (await app.book.find(key.encode())).models == ("small*",)  # without waiting
    assert (await client.get(f"/keys/{key_id}")).json() == made
    assert (await client.get("/keys")).json() == {"data": [made], "has_more": False}

    changed = await client.patch(f"/keys/{key_id}", json={"models": [], "expires": None})
    assert (changed.json()["models"], changed.json()["expires"]) == ([], None)
    assert changed.json()["tenant"] == "t"
    assert (await app.book.find(key.encode())).models == ()

    rotated = (await client.post(f"/keys/{key_id}/rotate", json={"overlap_s": 3600})).json()
    assert rotated["old_key_until"] > rotated["rotated"]
    new = rotated["key"]
    assert await app.book.find(key.encode()) == await app.book.find(new.encode())
    await client.post(f"/keys/{key_id}/rotate", json={"overlap_s": 0})
    with pytest.raises(AuthenticationError):
        await app.book.find(new.encode())

    revoked = (await client.delete(f"/keys/{key_id}")).json()
    assert revoked["status"] == "revoked"
    assert (await client.get("/keys")).json()["data"] == []
    assert len((await client.get("/keys?revoked=true")).json()["data"]) == 1
    refused = await client.patch(f"/keys/{key_id}", json={"name": "x"})
    assert error_of(refused, 400)["code"] == "key_revoked"

    log = (await client.get("/audit")).json()
    actions = [(entry["action"], entry["actor"]) for entry in log["data"]]
    assert actions == [
        ("key.revoke", "admin:root"), ("key.rotate", "admin:root"), ("key.rotate", "admin:root"),
        ("key.update", "admin:root"), ("key.create", "admin:root"),
    ]  # fmt: skip
    for secret in (key, new):
        assert secret.rpartition("_")[2] not in str(log)


async def test_pages(client: httpx.AsyncClient) -> None:
    for index in range(3):
        await client.post("/keys", json={"id": f"k{index}"})
    page = (await client.get("/keys?limit=2")).json()
    assert ([key["id"] for key in page["data"]], page["has_more"]) == (["k0", "k1"], True)
    page = (await client.get("/keys?limit=2&after=k1")).json()
    assert ([key["id"] for key in page["data"]], page["has_more"]) == (["k2"], False)
    log = (await client.get("/audit?limit=2")).json()
    older = (await client.get(f"/audit?limit=2&before={log['data'][-1]['seq']}")).json()
    assert [entry["subject"] for entry in log["data"] + older["data"]] == ["k2", "k1", "k0"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer  "},
        {"Authorization": f"Basic {ADMIN_KEY}"},
        {"Authorization": f"Bearer {ADMIN_KEY}x"},
        {"Authorization": f"Bearer {ADMIN_KEY[:-1]}"},
        {"Authorization": "Bearer sch\xfcssel-\xff-key".encode("latin-1")},
        {"X-Api-Key": ADMIN_KEY},
        {"Cookie": f"key={ADMIN_KEY}"},
    ],
)
async def test_who_may_not(app: AdminApp, headers: dict[str, Any]) -> None:
    async with client_of(app, None) as client:
        for method, path in (
            ("GET", "/keys"), ("POST", "/keys"), ("DELETE", "/keys/x"), ("POST", "/reload"),
            ("GET", "/audit"), ("GET", "/limits"), ("GET", "/spend"), ("GET", "/routes"),
        ):  # fmt: skip
            answer = await client.request(method, path, headers=headers)
            assert error_of(answer, 401)["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
    assert app.num_reloads == 0


async def test_two_keys_at_once_are_none(app: AdminApp) -> None:
    headers = [("Authorization", f"Bearer {ADMIN_KEY}"), ("Authorization", "Bearer x")]
    async with client_of(app, None) as client:
        error_of(await client.get("/keys", headers=headers), 401)


async def test_a_callers_key_does_not_open_it(app: AdminApp, client: httpx.AsyncClient) -> None:
    key = (await client.post("/keys", json={})).json()["key"]
    async with client_of(app, key) as caller:
        error_of(await caller.get("/keys"), 401)


async def test_every_admin_key_costs_the_same_comparisons(
    app: AdminApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[tuple[int, int]] = []
    genuine = hmac.compare_digest

    def counted(left: bytes, right: bytes) -> bool:
        lengths.append((len(left), len(right)))
        return genuine(left, right)

    monkeypatch.setattr(admin.hmac, "compare_digest", counted)
    for key in (ADMIN_KEY, "another-admin-key", "x", ADMIN_KEY[:-1], "y" * 5000):
        lengths.clear()
        async with client_of(app, key) as client:
            await client.get("/routes")
        assert lengths == [(32, 32)] * 2


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "/keys", b"{", None),
        ("POST", "/keys", b"[]", None),
        ("POST", "/keys", b'{"tenent": "x"}', "tenent"),
        ("POST", "/keys", b'{"id": "a_b"}', "id"),
        ("POST", "/keys", b'{"id": ""}', "id"),
        ("POST", "/keys", b'{"name": "a\\u0000b"}', "name"),
        ("POST", "/keys", b'{"tags": {"a": "\\u0000"}}', "tags[...]"),
        ("POST", "/keys", b'{"max_tokens": 0}', "max_tokens"),
        ("POST", "/keys", b'{"max_tokens": 99999999999999999999}', "max_tokens"),
        ("POST", "/keys", b'{"routes": ["files"]}', "routes[0]"),
        ("POST", "/keys", b'{"limits": ["silver"]}', "limits"),
        ("POST", "/keys", b'{"budgets": ["year"]}', "budgets"),
        ("POST", "/keys", b'{"expires": "2020-01-01T00:00:00Z"}', "expires"),
        ("POST", "/keys", b'{"expires": "2099-01-01"}', "expires"),
        ("POST", "/keys", b'{"expires_in_s": 5, "expires": null}', "expires_in_s"),
        ("PATCH", "/keys/k", b"{}", None),
        ("PATCH", "/keys/k", b'{"id": "other"}', "id"),
        ("POST", "/keys/k/rotate", b'{"overlap_s": -1}', "overlap_s"),
        ("DELETE", "/keys/k", b'{"why": 1}', "why"),
        ("GET", "/keys?limit=0", b"", "limit"),
        ("GET", "/keys?limit=1001", b"", "limit"),
        ("GET", "/keys?limit=%D9%A3", b"", "limit"),
        ("GET", "/keys?revoked=perhaps", b"", "revoked"),
        ("GET", "/audit?before=99999999999999999999", b"", "before"),
        ("GET", "/spend?by=colour", b"", None),
    ],
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, method: str, path: str, body: bytes, param: str | None
) -> None:
    answer = await client.request(method, path, content=body)
    error = error_of(answer, 400)
    assert error["param"] == param, error
    assert (await client.get("/keys")).json()["data"] == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/keys/unknown", 404),
        ("PATCH", "/keys/unknown", 404),
        ("GET", "/keys/%27%20OR%20%27%27=%27", 404),
        ("GET", "/keys/..%2f..%2fetc", 404),
        ("GET", "/nothing", 404),
        ("PUT", "/keys", 405),
        ("GET", "/reload", 405),
        ("GET", "/escalations", 404),
    ],
)
async def test_what_is_not_there(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    body = b'{"name": "x"}' if method == "PATCH" else b""
    error_of(await client.request(method, path, content=body), status)


async def test_limits_routes_and_spend_are_shown(app: AdminApp, client: httpx.AsyncClient) -> None:
    await app.limits.admit(call_of("somebody"))
    assert (await client.get("/limits")).json()["data"] == [
        {
            "limit": "gold", "subject": {"key": "somebody"}, "requests_per_minute": 5,
            "requests_left": 4,
        }
    ]  # fmt: skip
    assert (await client.get("/budgets")).json() == {"data": []}
    assert (await client.get("/routes")).json() == {"backends": {"a": {"is_usable": True}}}
    assert (await client.get("/spend?by=feature&since=7d")).json() == {"rows": []}
    assert app.asked == [{"by": "feature", "since": "7d"}]


async def test_a_reload_is_on_record_and_a_bad_one_says_why(
    app: AdminApp, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    assert (await client.post("/reload")).json() == {"generation": 1}
    app.config_error = "gateway.yaml:3: no such tier"
    error = error_of(await client.post("/reload"), 400)
    assert error["code"] == "bad_config"
    assert "gateway.yaml:3" in error["message"]
    log = (await client.get("/audit?action=config.reload")).json()["data"]
    assert [entry["detail"] for entry in log] == [{"error": app.config_error}, {}]

    def away(*args: object, **more: object) -> None:
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(app.store, "add_audit", away)
    app.config_error = ""
    with caplog.at_level(logging.ERROR):
        assert (await client.post("/reload")).json() == {"generation": 2}
    assert "not in the audit log: config.reload by admin:root" in caplog.text


async def test_without_a_database_it_says_so(
    app: AdminApp, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: object, **more: object) -> None:
        raise DatabaseUnavailableError("postgresql://u:secret@h/d: away")

    monkeypatch.setattr(app.store, "keys", away)
    answer = await client.get("/keys")
    assert error_of(answer, 503)["code"] == "database_unavailable"
    assert "secret" not in answer.text
    assert answer.headers["retry-after"] == "5"


async def test_without_a_ledger_there_are_no_keys_to_change() -> None:
    app = AdminApp("")
    async with client_of(app) as client:
        for method, path in (("GET", "/keys"), ("POST", "/keys"), ("GET", "/audit")):
            assert error_of(await client.request(method, path), 404)["code"] == "no_ledger"
        assert (await client.post("/reload")).status_code == 200


async def test_a_body_that_is_too_large(client: httpx.AsyncClient) -> None:
    error_of(await client.post("/keys", content=b" " * (admin.MAX_BODY_BYTES + 1)), 413)
