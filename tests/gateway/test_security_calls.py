"""What a caller with a key tries: other fields, tags, tenants, ids and keys than are his; and what
anybody may learn of secrets.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from octavo.gateway import keys as keys_module
from octavo.gateway.reading import read_call
from octavo.ledger.database import Database
from octavo.ledger.store import open_ledger
from tests.gateway.raw_http import CHAT, Answer, ServedGateway

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway.fake_upstream import FakeUpstream

KEY = "a-key-of-the-tests-0123456789"
LIMITED_KEY = "another-key-of-the-tests-012345"
ADMIN_KEY = "an-admin-key-of-the-tests-0123"
BACKEND_KEY = "the-backends-own-key-of-the-tests"
HEADER_SECRET = "a-header-that-is-secret-0123"
REDIS_SECRET = "a-password-of-redis-0123"
HOOK_SECRET = "a-path-that-is-secret-0123"
SECRETS = (
    KEY, LIMITED_KEY, ADMIN_KEY, BACKEND_KEY, HEADER_SECRET, REDIS_SECRET, HOOK_SECRET,
)  # fmt: skip
AUTH = f"Authorization: Bearer {KEY}"
LIMITED = f"Authorization: Bearer {LIMITED_KEY}"
ADMIN = f"Authorization: Bearer {ADMIN_KEY}"
PROMPT = "a prompt that no log has"
MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}]}


class Ears(logging.Handler):
    """Hears all that is logged, tracebacks included."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[tuple[int, str]] = []
        self._format = logging.Formatter("%(name)s %(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.levelno, self._format.format(record)))


@pytest.fixture(scope="module")
def ears() -> Iterator[Ears]:
    root, ears = logging.getLogger(), Ears()
    level = root.level
    root.addHandler(ears)
    root.setLevel(logging.DEBUG)
    yield ears
    root.setLevel(level)
    root.removeHandler(ears)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, ears: Ears) -> Iterator[ServedGateway]:
    folder = tmp_path_factory.mktemp("gateway")

    def config(fake: FakeUpstream) -> str:
        quick = "probe: {interval: 0}, breaker: {failures: 1000}"
        models = "{ok: {price: {input: 1, output: 3}}, secret: {}, '400': {}, '500': {}, '401': {}}"
        return f"""
keys:
  inline:
    - {{id: k1, key: {KEY}, tenant: acme, tags: {{team: red}}}}
    - id: k2
      key: {LIMITED_KEY}
      models: [ok]
      features: [support, "chat-*"]
      routes: [chat]
      max_tokens: 10
      default_max_tokens: 5
admin: {{keys: {{root: {ADMIN_KEY}}}}}
ledger: {{url: "sqlite:///{folder}/ledger.db"}}
redis_url: "redis://user:{REDIS_SECRET}@127.0.0.1:1/0"
limits:
  {{rules: {{all: {{requests_per_minute: 100000}}}}, store: redis, redis_timeout_s: 0.05}}
budgets:
  rules: {{soft: {{cost: 0.000001, kind: soft, models: [ok]}}}}
  webhooks: {{hook: {{url: "http://127.0.0.1:1/{HOOK_SECRET}", timeout_s: 0.1, max_tries: 1}}}}
backends:
  engine:
    {{url: "{fake.url}", kind: octavo, metered: true, api_key: {BACKEND_KEY}, models: {models},
      headers: {{X-Extra: {HEADER_SECRET}}}, {quick}}}
  cloud:
    {{url: "{fake.url}", api_key: {BACKEND_KEY}, models: {{cloud: {{}}, 'flaky-1': {{}}}},
      headers: {{X-Extra: {HEADER_SECRET}}}, {quick}}}
tiers:
  both: {{targets: [cloud/flaky-1, engine/ok], balance: order}}
models:
  both: {{tiers: [both]}}
"""

    with ServedGateway(folder, config) as served:
        served.fake.adds_to_errors = f" to {BACKEND_KEY} and {HEADER_SECRET}"
        yield served


@pytest.fixture(autouse=True)
def clean(served: ServedGateway) -> None:
    served.fake.seen.clear()


def chat(served: ServedGateway, body: bytes | dict[str, Any], *lines: str) -> Answer:
    return served.ask(CHAT, body, *(lines or (LIMITED,)))


def rows(served: ServedGateway, statement: str) -> list[tuple[Any, ...]]:
    """Of the ledger, once all that happened is in it."""
    served.idle()
    ledger = served.gateway.gateway._ledger
    assert ledger.writer is not None
    assert ledger.writer.wait_durable()
    connection = Database(ledger.url).connect()
    try:
        return list(connection.rows(statement))
    finally:
        connection.close()


# What is checked is what is sent.


def test_of_a_field_that_is_there_twice_the_backend_gets_what_was_checked(
    served: ServedGateway,
) -> None:
    first = json.dumps(MESSAGES)[:-1]
    names = ('"model"', '"mod\\u0065l"', '"\\u006dodel"')
    for one in names:
        for other in names:
            twice = f'{first}, {one}: "secret", {other}: "ok"}}'
            assert chat(served, twice.encode()).status == 200
            assert (
                chat(served, twice.replace("secret", "x").replace("ok", "secret").encode()).status
                == 403
            )
    assert {seen.model for seen in served.fake.seen} == {"ok"}
    served.fake.seen.clear()
    for bound in ("max_tokens", "max_completion_tokens", "max_token\\u0073"):
        text = f'{first}, "model": "ok", "{bound}": 1, "{bound}": 99}}'
        assert chat(served, text.encode()).status == 200
        body = served.fake.seen[-1].body
        assert [v for k, v in body.items() if k.startswith("max_")] == [10]


@pytest.mark.parametrize(
    "name",
    ["Model", "MODEL", "Max_Tokens", "max_to\u212aens", "max_token\u017f", "N", "Stream",
     "Cache_Salt", "Metadata", "Messages"],
)  # fmt: skip
def test_names_that_other_readers_of_json_take_for_ours_are_refused(
    served: ServedGateway, name: str
) -> None:
    answer = chat(served, {"model": "ok", **MESSAGES, name: 7})
    assert (answer.status, answer.error["param"]) == (400, name.casefold())
    assert not served.fake.seen


def test_names_that_nobody_takes_for_ours_pass(served: ServedGateway) -> None:
    odd = {"topK": 3, "Ünknown": {"Model": 1}, "": 1, "x" * 1000: 2, "\0": 3}
    assert chat(served, {"model": "ok", **MESSAGES, **odd}).status == 200
    assert odd.items() <= served.fake.seen[0].body.items()


def test_text_that_is_none(served: ServedGateway) -> None:
    for content in (
        b"\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\\udc00x",
        b"a\0b",
        b"\\x",
    ):
        body = b'{"model": "ok", "messages": [{"role": "user", "content": "%b"}]}' % content
        assert chat(served, body).status == 400
    for body in (
        b"\xef\xbb\xbf{}",
        '{"model": "ok"}'.encode("utf-16"),
        b"[]",
        b"1",
        b"{} {}",
        b"\0",
    ):
        assert chat(served, body).status == 400
    assert not served.fake.seen
    body = b'{"model": "ok", "messages": [{"role": "user", "content": "a\\u0000b\\ud83d\\ude00"}]}'
    assert chat(served, body).status == 200
    assert served.fake.seen[0].body["messages"][0]["content"] == "a\0b\U0001f600"


@pytest.mark.parametrize("depth", [50, 900, 1100, 100_000, 3_000_000])
def test_any_depth_is_passed_on_or_refused(served: ServedGateway, depth: int) -> None:
    for field in (b'"x": %b', b'"messages": [{"content": %b}]', b'"tools": [%b]'):
        value = field % (b"[" * depth + b"]" * depth)
        assert chat(served, b'{"model": "ok", "messages": [], %b}' % value).status in (200, 400)
    value = b'"metadata": ' + b'{"a": ' * depth + b"1" + b"}" * depth
    assert chat(served, b'{"model": "ok", "messages": [], %b}' % value).status in (200, 400)
    # The fake reads with another library, whose bound is another one
    assert not [seen for seen in served.fake.seen if depth > 1000]


def test_numbers_beyond_all_bounds(served: ServedGateway) -> None:
    for value in (
        b"1e400",
        b"9" * 5000,
        b"-1",
        b"1.5",
        b"true",
        b'"9"',
        b"NaN",
        b"Infinity",
        b"[]",
    ):
        for name in (b"max_tokens", b"n"):
            text = b'{"model": "ok", "messages": [], "%b": %b}' % (name, value)
            assert chat(served, text).status == 400
    assert not served.fake.seen


def test_bodies_that_take_long_are_read_beside_the_others(
    served: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def read(*args: Any, **more: Any) -> Any:
        names.append(threading.current_thread().name)
        return read_call(*args, **more)

    monkeypatch.setattr("octavo.gateway.forward.read_call", read)
    message = {"role": "user", "content": "a"}
    assert chat(served, {"model": "ok", "messages": [message] * 40_000}).status == 200
    assert len(served.fake.seen[0].body["messages"]) == 40_000
    assert chat(served, {"model": "secret", "messages": [message] * 40_000}).status == 403
    assert chat(served, {"model": "ok", "messages": [message, 1] * 40_000}).status == 400
    assert chat(served, {"model": "ok", "messages": [message]}).status == 200
    assert names[3] == "gateway"  # the loop's own
    assert {name.rpartition("_")[0] for name in names[:3]} == {"gateway-aside"}


# Who asks, and what for.


def test_what_a_caller_says_of_himself_is_not_handed_on(served: ServedGateway) -> None:
    said = (
        "X-Octavo-Tenant: evil", "X-Octavo-Tag-Team: blue", "X-Octavo-Parent-Request: other",
        "X-Octavo-Include-Cost: 0", "X-Octavo-Tag-mine: yes", "X-Octavo-Something: else",
        "baggage: tenant=evil,team=blue,note=x", "Cookie: a=b", "Forwarded: for=1.2.3.4",
        "X-Forwarded-For: 1.2.3.4", "Proxy-Authorization: Basic eA==", "Via: 1.1 x", "TE: trailers",
        "tracestate: a=b", "traceparent: 00-x-y-01",
    )  # fmt: skip
    metadata = {
        "tenant": "evil", "session_id": "s1", "Team": "blue", "TEAM": "blue", "octavo.shadow": "1",
        "Octavo.Shadow": "1", "line": "a\r\nX-Octavo-Tenant: evil", "kept": "x",
    }  # fmt: skip
    body = {"model": "ok", **MESSAGES, "metadata": metadata, "user": "u", "cache_salt": "mine"}
    answer = chat(served, body, AUTH, *said)
    assert answer.status == 200
    (seen,) = served.fake.seen
    ours = {name: value for name, value in seen.headers.items() if name.startswith("x-octavo")}
    assert ours.pop("x-octavo-parent-request") == answer.headers["x-request-id"]
    assert ours == {
        "x-octavo-include-cost": "1", "x-octavo-tenant": "acme", "x-octavo-session": "s1",
        "x-octavo-tag-team": "red", "x-octavo-tag-mine": "yes", "x-octavo-tag-user": "u",
        "x-octavo-tag-kept": "x", "x-octavo-tag-note": "x",
    }  # fmt: skip
    assert len(seen.raw_headers) == len(seen.headers)  # none is there twice
    others = set(seen.headers) - set(ours)
    assert others == {
        "host", "user-agent", "accept-encoding", "content-type", "content-length", "accept",
        "x-request-id", "authorization", "x-extra", "x-octavo-parent-request",
    }  # fmt: skip
    assert not {"tenant", "session_id"} & set(seen.body["metadata"])
    assert re.fullmatch("[0-9a-f]{64}", seen.body["cache_salt"])
    ((tenant, key),) = rows(
        served,
        f"SELECT tenant, key FROM attempts WHERE request_id = '{answer.headers['x-request-id']}'",
    )
    assert (tenant, key) == ("acme", "k1")


def test_a_salt_of_one_tenant_is_no_other_ones(served: ServedGateway) -> None:
    salts = []
    for line in (AUTH, LIMITED):
        for salt in (None, "a", "b", "", 7, {"a": 1}):
            more = {} if salt is None else {"cache_salt": salt}
            assert chat(served, {"model": "ok", **MESSAGES, **more}, line).status == 200
            salts.append(served.fake.seen[-1].body["cache_salt"])
    assert len(set(salts)) == len(salts)


def test_features_that_are_not_the_keys(served: ServedGateway) -> None:
    body = {"model": "ok", **MESSAGES}
    assert chat(served, body, LIMITED, "X-Octavo-Feature: chat-eu").status == 200
    assert served.fake.seen[0].headers["x-octavo-feature"] == "chat-eu"
    assert chat(served, body).status == 200
    assert served.fake.seen[1].headers["x-octavo-feature"] == "support"
    for line in (
        "X-Octavo-Feature: billing",
        "X-Octavo-Feature: support\u00e9",
        "baggage: feature=x",
    ):
        assert chat(served, body, LIMITED, line).status in (400, 403)
    twice = ("X-Octavo-Feature: support", "X-Octavo-Feature: chat-eu")
    assert chat(served, body, LIMITED, *twice).status == 400
    assert chat(served, body | {"metadata": {"feature": "billing"}}).status == 403
    assert served.ask("/v1/completions", {"model": "ok", "prompt": "x"}, LIMITED).status == 403
    assert served.ask("/v1/%63ompletions", {"model": "ok", "prompt": "x"}, LIMITED).status == 403
    for model in ("secret", "engine/secret", "both", "OK", " ok", "ok\0", "ok/../secret"):
        assert chat(served, {"model": model, **MESSAGES}).status in (400, 403), model
    assert [card["id"] for card in served.ask("/v1/models", b"", LIMITED).json["data"]] == ["ok"]
    assert served.ask("/v1/models/secret", b"", LIMITED).status == 404
    assert len(served.fake.seen) == 2


def test_an_id_that_comes_again_hides_nothing_and_is_the_callers(served: ServedGateway) -> None:
    line = "X-Request-Id: again"
    for model in ("ok", "cloud", "both"):
        answer = chat(served, {"model": model, **MESSAGES}, AUTH, line)
        assert (answer.status, answer.headers["x-request-id"]) == (200, "again")
    assert chat(served, {"model": "ok", **MESSAGES}, LIMITED, line).status == 200
    ids = [seen.headers["x-request-id"] for seen in served.fake.seen]
    assert len(set(ids)) == len(ids) == 5
    parents = [seen.headers.get("x-octavo-parent-request") for seen in served.fake.seen]
    assert [parent for parent in parents if parent] == ["again"] * 3
    found = rows(
        served, "SELECT request_id, number, upstream_id FROM attempts WHERE parent_id = 'again'"
    )
    assert len(found) == 5
    assert {row[2] for row in found} == set(ids)
    usage = rows(served, "SELECT request_id FROM usage WHERE parent_id = 'again'")
    assert len(usage) == 1  # the cloud's; the engine meters itself
    told = served.ask("/admin/v1/requests/again", b"", ADMIN).json
    assert len(told["attempts"]) == 5
    served.fake._counts.clear()
    for given in ("a" * 129, "a b", "\u00e9", "", "a';DROP", "%0d%0aX: y", "../../x"):
        answer = chat(served, {"model": "cloud", **MESSAGES}, AUTH, f"X-Request-Id: {given}")
        assert answer.status == 200
        assert re.fullmatch(r"[\x21-\x7e]{1,128}", answer.headers["x-request-id"])
    longest = "b" * 128
    for _ in range(2):
        assert (
            chat(served, {"model": "ok", **MESSAGES}, AUTH, f"X-Request-Id: {longest}").status
            == 200
        )
        assert served.fake.seen[-1].headers["x-octavo-parent-request"] == longest
    assert len(rows(served, f"SELECT number FROM attempts WHERE parent_id = '{longest}'")) == 2


# Keys.


def test_wrong_keys_look_alike_and_take_the_same_comparisons(
    served: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = served.ask("/admin/v1/keys", {"name": "a"}, ADMIN).json
    gone = served.ask("/admin/v1/keys", {"name": "b"}, ADMIN).json
    revoked = served.ask(f"/admin/v1/keys/{gone['id']}", b"", ADMIN, method="DELETE")
    assert revoked.status == 200
    real = keys_module.hmac.compare_digest
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    wrong = made["key"][:-1] + ("0" if made["key"][-1] != "0" else "1")
    tries = {
        "good": KEY, "good and stored": made["key"], "wrong secret": wrong,
        "wrong at its beginning": made["key"][:-64] + "f" * 64, "other prefix": "sk-" + "a" * 60,
        "nothing like it": "x", "almost": KEY[:-1], "longer": KEY + "0",
    }  # fmt: skip
    counts: dict[str, list[tuple[int, int]]] = {}
    answers = {}
    for what, key in tries.items():
        with monkeypatch.context() as patched:
            patched.setattr(keys_module.hmac, "compare_digest", compare)
            compared.clear()
            answers[what] = served.ask("/v1/models", b"", f"Authorization: Bearer {key}")
            counts[what] = list(compared)
    assert len({tuple(count) for count in counts.values()}) == 1
    assert counts["good"] == [(32, 32)] * 4
    assert [what for what in tries if answers[what].status == 200] == ["good", "good and stored"]
    bad = {answer.body for what, answer in answers.items() if answer.status != 200}
    bad.add(served.ask("/v1/models", b"", f"Authorization: Bearer {gone['key']}").body)
    assert len(bad) == 1
    for secret in (made["key"], gone["key"], made["key"].rpartition("_")[2]):
        for path in ("keys?revoked=1", f"keys/{made['id']}", "audit", "overview"):
            assert secret.encode() not in served.ask(f"/admin/v1/{path}", b"", ADMIN).body


def test_what_a_gateway_fetches_for_a_prompt_is_nothing(served: ServedGateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        place = f"127.0.0.1:{trap.getsockname()[1]}"
        parts = [
            {"type": "image_url", "image_url": {"url": f"http://{place}/a.png"}},
            {"type": "image_url", "image_url": f"https://{place}/a.png"},
            {"type": "input_audio", "input_audio": {"url": f"http://{place}/a.wav"}},
            {"type": "video_url", "video_url": {"url": f"http://{place}/a.mp4"}},
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
            {"type": "file", "file": {"file_data": f"http://{place}/"}},
        ]
        body = {"model": "ok", "messages": [{"role": "user", "content": parts}]}
        assert chat(served, body, AUTH, f"Host: {place}".replace("Host", "X-Host")).status == 200
        schema = {"$ref": f"http://{place}/schema.json"}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        assert (
            chat(served, {"model": "ok", **MESSAGES, "response_format": form}, AUTH).status == 200
        )
        with pytest.raises(TimeoutError):
            trap.accept()
    assert served.fake.seen[0].body["messages"] == body["messages"]


# What anybody may learn. The last ones, as they look at all that was said above.


def test_answers_show_no_secret(served: ServedGateway) -> None:
    said = [
        chat(served, {"model": model, **MESSAGES}, AUTH) for model in ("400", "500", "401", "both")
    ]
    assert [answer.status for answer in said[:3]] == [400, 502, 502]
    said += [served.ask(path) for path in ("/metrics", "/load", "/version", "/ready", "/health")]
    for path in ("routes", "overview", "keys", "audit", "limits", "budgets", "spend",
                 "escalations", "requests/again"):  # fmt: skip
        said.append(served.ask(f"/admin/v1/{path}", b"", ADMIN))
        assert said[-1].status == 200, path
    said.append(served.ask("/admin/v1/reload", b"", ADMIN, method="POST"))
    assert said[-1].status == 200
    for answer in said:
        for secret in SECRETS:
            assert secret.encode() not in answer.body, answer
            assert secret not in str(answer.headers)
    parts = served.gateway.gateway.parts
    for shown in (parts.config, parts.config.backends, parts.dispatcher.upstreams, parts.keys):
        assert not [secret for secret in SECRETS if secret in repr(shown)]
    with open_ledger(served.gateway.gateway._ledger.url) as ledger:
        assert ledger.totals()


def test_a_failure_of_our_own_shows_nothing(
    served: ServedGateway, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an error of the tests")

    monkeypatch.setattr(type(served.gateway.gateway.parts.router), "route", fail)
    answer = chat(served, {"model": "ok", **MESSAGES}, AUTH)
    assert answer.status == 500
    assert b"tests" not in answer.body
    assert any("an error of the tests" in text for _, text in ears.said)


def test_logs_have_no_secret_and_no_prompt(served: ServedGateway, ears: Ears) -> None:
    assert chat(served, {"model": "500", **MESSAGES}, AUTH).status == 502
    assert served.ask("/v1/%0aINFO%20forged", b"", AUTH).status == 404
    served.idle()
    text = "\n".join(text for _, text in ears.said)
    assert "POST /v1/chat/completions" in text
    for secret in SECRETS:
        assert secret not in text
    assert PROMPT not in "\n".join(text for level, text in ears.said if level >= logging.INFO)
