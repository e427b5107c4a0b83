"""What an attacker sends: bytes that two servers read in two ways, paths that lead elsewhere, heads
and bodies without end. Over raw sockets, as no client sends these.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.gateway.raw_http import CHAT, ServedGateway, num_answers, parse, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway.fake_upstream import FakeUpstream

KEY = "a-key-of-the-tests-0123456789"
ADMIN_KEY = "an-admin-key-of-the-tests-0123"
AUTH = f"Authorization: Bearer {KEY}"
ADMIN_AUTH = f"Authorization: Bearer {ADMIN_KEY}"
MAX_BODY = 100_000
BODY = json.dumps({"model": "ok", "messages": [{"role": "user", "content": "Hello"}]}).encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: here\r\n{AUTH}\r\n"
SECOND = f"{HEAD}X-Octavo-Feature: smuggled\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
"""A whole request that must not be taken for one where it stands within another."""


def config(fake: FakeUpstream) -> str:
    return f"""
server: {{max_body_bytes: {MAX_BODY}, max_header_bytes: 8192}}
keys: {{inline: [{{id: k1, key: {KEY}, tenant: acme}}]}}
admin: {{keys: {{root: {ADMIN_KEY}}}}}
backends:
  fake:
    url: {fake.url}
    models: {{ok: {{}}}}
    timeouts: {{connect: 0.5, first_token: 0.5, idle: 0.5, total: 2}}
    probe: {{interval: 0}}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    with ServedGateway(tmp_path_factory.mktemp("gateway"), config) as served:
        yield served


@pytest.fixture(autouse=True)
def alive(served: ServedGateway) -> Iterator[None]:
    """Whatever came, nothing is left of it, and the gateway serves."""
    served.fake.seen.clear()
    yield
    assert served.ask("/health").status == 200
    served.idle()


LEN = f"Content-Length: {len(BODY)}\r\n"
TE = "Transfer-Encoding: chunked\r\n"
AMBIGUOUS: dict[str, tuple[str, bytes]] = {
    "a length and chunks": (LEN + TE, CHUNKED),
    "chunks and a length": (TE + "Content-Length: 4\r\n", CHUNKED),
    "two lengths": (LEN + f"Content-Length: {len(BODY) + len(SECOND)}\r\n", BODY),
    "one length twice": (LEN + LEN, BODY),
    "a list of lengths": (f"Content-Length: {len(BODY)}, {len(BODY)}\r\n", BODY),
    "a length with a sign": (f"Content-Length: +{len(BODY)}\r\n", BODY),
    "a length below 0": ("Content-Length: -1\r\n", BODY),
    "a hexadecimal length": (f"Content-Length: {len(BODY):#x}\r\n", BODY),
    "a length beyond 64 bits": (f"Content-Length: {2**64 + len(BODY)}\r\n", BODY),
    "no length": ("Content-Length: \r\n", BODY),
    "a space before the colon": (f"Content-Length : {len(BODY)}\r\n", BODY),
    "a space before the colon of chunks": ("Transfer-Encoding : chunked\r\n" + LEN, CHUNKED),
    "an unknown coding": ("Transfer-Encoding: xchunked\r\n", CHUNKED),
    "chunked and then another coding": ("Transfer-Encoding: chunked, identity\r\n", CHUNKED),
    "another coding, then chunked": ("Transfer-Encoding: identity, chunked\r\n", CHUNKED),
    "compressed, then chunked": ("Transfer-Encoding: gzip, chunked\r\n", CHUNKED),
    "two codings in two lines": (TE + "Transfer-Encoding: identity\r\n", CHUNKED),
    "a coding after a vertical tab": ("Transfer-Encoding:\x0bchunked\r\n", CHUNKED),
    "a folded coding": ("Transfer-Encoding:\r\n chunked\r\n", CHUNKED),
    "a folded header": ("X-A: b\r\n c: d\r\n" + LEN, BODY),
    "a folded length": ("X-A: b\r\n Content-Length: 3\r\n" + LEN, BODY),
    "a line that ends in LF alone": ("X-A: b\nX-B: c\r\n" + LEN, BODY),
    "a CR within a line": ("X-A: b\rX-B: c\r\n" + LEN, BODY),
    "a NUL in a header": ("X-A: b\0c\r\n" + LEN, BODY),
    "no name of a header": (": b\r\n" + LEN, BODY),
    "a name with a space": ("X A: b\r\n" + LEN, BODY),
    "two hosts": ("Host: there\r\n" + LEN, BODY),
}


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_what_may_be_read_in_two_ways_is_refused_and_ends_the_connection(
    served: ServedGateway, what: str
) -> None:
    lines, data = AMBIGUOUS[what]
    with served.connect() as sock:
        sock.sendall(f"{HEAD}{lines}\r\n".encode("latin-1") + data + SECOND)
        answers = read_all(sock)  # returns before its time is over: the gateway closes
    assert num_answers(answers) == 1
    assert parse(answers).status == 400
    assert parse(answers).error["code"] == "invalid_http"
    assert parse(answers).headers["connection"] == "close"
    assert not served.fake.seen


def test_lines_that_end_in_lf_alone_are_no_request(served: ServedGateway) -> None:
    answers = served.send((HEAD + LEN).replace("\r\n", "\n").encode() + b"\n" + BODY + SECOND)
    assert (num_answers(answers), parse(answers).status) == (1, 400)
    assert not served.fake.seen


BAD_CHUNKS = {
    "a size beyond 64 bits": b"fffffffffffffffff\r\n" + BODY,
    "a size below 0": b"-5\r\n" + BODY,
    "a size with 0x": b"%#x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a chunk that is longer": b"%x\r\n%bXX0\r\n\r\n" % (len(BODY), BODY),
    "an extension that ends in LF": b"%x;a\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "an end in LF alone": b"%x\r\n%b\n0\n\n" % (len(BODY), BODY),
}


@pytest.mark.parametrize("what", BAD_CHUNKS)
def test_bad_chunks_reach_nobody(served: ServedGateway, what: str) -> None:
    answers = served.send(f"{HEAD}{TE}\r\n".encode() + BAD_CHUNKS[what] + SECOND)
    assert num_answers(answers) <= 1
    assert not answers or parse(answers).status >= 400
    assert not served.fake.seen


@pytest.mark.parametrize("extension", ["", ";a=b", ';a="' + "b" * 9000 + '"'])
def test_extensions_of_chunks_say_nothing(served: ServedGateway, extension: str) -> None:
    data = b"%x%b\r\n%b\r\n0\r\n\r\n" % (len(BODY), extension.encode(), BODY)
    answers = served.send(f"{HEAD}{TE}Connection: close\r\n\r\n".encode() + data)
    assert (num_answers(answers), parse(answers).status) == (1, 200)
    assert served.fake.seen[0].body["messages"] == json.loads(BODY)["messages"]


def test_headers_after_a_body_are_no_headers(served: ServedGateway) -> None:
    trailers = "X-Octavo-Feature: late\r\nX-Api-Key: another\r\nX-Request-Id: late\r\n"
    data = CHUNKED.removesuffix(b"\r\n") + trailers.encode() + b"\r\n"
    counted = served.fake.seen
    answer = parse(served.send(f"{HEAD}{TE}Connection: close\r\n\r\n".encode() + data))
    assert (answer.status, len(counted)) == (200, 1)
    assert answer.headers["x-request-id"] != "late"
    # A key that comes there alone is none
    head = HEAD.replace(f"{AUTH}\r\n", "")
    data = CHUNKED.removesuffix(b"\r\n") + f"{AUTH}\r\n\r\n".encode()
    assert parse(served.send(f"{head}{TE}Connection: close\r\n\r\n".encode() + data)).status == 401
    many = CHUNKED.removesuffix(b"\r\n") + b"X-A: b\r\n" * 5000 + b"\r\n"
    assert num_answers(served.send(f"{HEAD}{TE}\r\n".encode() + many + SECOND)) <= 1


def test_two_whole_requests_are_two(served: ServedGateway) -> None:
    answers = served.send(f"{HEAD}{LEN}\r\n".encode() + BODY + SECOND)
    assert (num_answers(answers), len(served.fake.seen)) == (2, 2)


def test_the_body_of_a_get_is_no_request(served: ServedGateway) -> None:
    answer = served.ask("/v1/models", SECOND, AUTH, method="GET")
    assert (answer.status, answer.rest) == (200, b"")
    assert not served.fake.seen


PATHS_TO_ADMIN = (
    "/admin/v1/keys", "//admin/v1/keys", "///admin/v1/keys", "/admin//v1/keys", "/%61dmin/v1/keys",
    "/admin%2fv1%2fkeys", "/admin/v1/keys%2f", "/admin/v1/keys%00", "/admin/v1/keys/",
    "/admin/v1/keys.", "/admin/v1/keys;", "/admin/v1/keys;a=b", "/admin/v1/keys?a=%",
    "/ADMIN/v1/keys",
    "/./admin/v1/keys", "/v1/../admin/v1/keys", "/v1/%2e%2e/admin/v1/keys", "/v1/..;/admin/v1/keys",
    "/v1/models/../../admin/v1/keys", "/health/../admin/v1/keys", "/metrics/..%2fadmin/v1/keys",
    "/\\admin/v1/keys", "http://here/admin/v1/keys", "http://admin@here/admin/v1/keys",
    "http://127.0.0.1:1/admin/v1/keys", "/admin/v1/keys#/health", "/%c0%afadmin/v1/keys",
    "/admin/v1/overview", "/admin/v1/audit", "/admin/v1/spend", "/admin/v1/escalations",
    "/admin/v1/requests/x", "/admin/v1/routes", "/admin/v1/limits", "/admin/v1/budgets",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS_TO_ADMIN)
def test_no_path_leads_to_administration_without_its_key(served: ServedGateway, path: str) -> None:
    for lines in ((), (AUTH,), (f"X-Api-Key: {ADMIN_KEY}",), (AUTH, ADMIN_AUTH)):
        for method in ("GET", "POST", "HEAD"):
            answer = served.ask(path, b"", *lines, method=method)
            assert answer.status in (400, 401, 404, 405), (method, answer)
            assert b"k1" not in answer.body


PATHS_TO_CHAT = (
    "//v1/chat/completions", "/v1//chat/completions", "/v1/chat/completions/",
    "/v1/chat/completions;", "/V1/chat/completions", "/v1/./chat/completions",
    "/v1/x/../chat/completions", "/v1/chat/completions%00", "/v1/chat/completions.",
    "/backend/v1/chat/completions",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS_TO_CHAT)
def test_other_spellings_are_other_paths(served: ServedGateway, path: str) -> None:
    assert served.ask(path, BODY, AUTH).status == 404
    assert not served.fake.seen


@pytest.mark.parametrize(
    "path", ["/v1/chat/%63ompletions", f"http://evil{CHAT}", f"{CHAT}?a=/../b"]
)
def test_a_backend_gets_our_own_spelling_of_the_path(served: ServedGateway, path: str) -> None:
    assert served.ask(path, BODY).status == 401
    answer = served.ask(path, BODY, AUTH, "X-Forwarded-Host: evil", "X-Original-URL: /admin")
    assert answer.status == 200
    assert served.fake.seen[0].path == CHAT


@pytest.mark.parametrize(
    "host", ["evil", "127.0.0.1:1", "169.254.169.254", "a\tb", "[::1", "ä", ""]
)
def test_a_host_leads_nowhere(served: ServedGateway, host: str) -> None:
    head = HEAD.replace("Host: here", f"Host: {host}") + LEN + "Connection: close\r\n\r\n"
    answer = parse(served.send(head.encode("latin-1") + BODY))
    assert answer.status == 200
    assert served.fake.seen[0].headers["host"] == served.fake.url.removeprefix("http://")
    assert "location" not in answer.headers


def test_methods_that_lead_elsewhere(served: ServedGateway) -> None:
    for method in ("TRACE", "OPTIONS", "PUT", "DELETE", "PATCH", "HEAD", "GET"):
        assert served.ask(CHAT, b"", AUTH, method=method).status == 405
    lines = ("X-HTTP-Method-Override: POST", AUTH)
    assert served.ask(CHAT, b"", *lines, method="GET").status == 405
    connect = served.send(b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert parse(connect).status == 400
    assert not served.fake.seen


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0"])
def test_no_other_protocol_is_gone_over_to(served: ServedGateway, protocol: str) -> None:
    head = (
        f"GET /v1/models HTTP/1.1\r\nHost: here\r\nUpgrade: {protocol}\r\n"
        "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with served.connect() as sock:
        sock.settimeout(0.3)
        sock.sendall(head.encode() + SECOND)
        answers = read_all(sock)
    # The offer is ignored, and what comes next is the next request.
    assert (num_answers(answers), parse(answers).status) == (2, 401)
    assert b" 101 " not in answers


@pytest.mark.parametrize("name", ["Upgrade", "UPGRADE", "upgrade"])
def test_a_body_after_an_offer_of_another_protocol(served: ServedGateway, name: str) -> None:
    """Java's client offers h2c with every request on plain HTTP."""
    lines = ("Connection: Upgrade, HTTP2-Settings", f"{name}: h2c", "HTTP2-Settings: AAEAAEAAAA")
    answer = served.ask(CHAT, BODY, AUTH, *lines)
    assert answer.status == 200
    [seen] = served.fake.seen
    assert not [header for header in seen.headers if "pgrade" in header]


def test_heads_without_end(served: ServedGateway) -> None:
    for lines in ("X-A: " + "a" * 9000 + "\r\n", "X-A: b\r\n" * 300, f"X-{'a' * 9000}: b\r\n"):
        assert parse(served.send(f"{HEAD}{lines}{LEN}\r\n".encode() + BODY)).status == 431
    assert parse(served.send(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n")).status == 431
    with served.connect() as sock:  # a line that does not end
        sock.sendall(b"GET / HTTP/1.1\r\nX-A: a")
        time.sleep(0.05)
        sock.sendall(b"a" * 9000)
        assert parse(read_all(sock)).status == 431
    assert not served.fake.seen


def test_bodies_that_are_too_large(served: ServedGateway) -> None:
    assert served.ask(CHAT, b" " * MAX_BODY + BODY, AUTH).status == 413
    announced = f"{HEAD}Content-Length: {2**62}\r\n\r\n"
    assert parse(served.send(announced.encode())).status == 413  # before any of it
    chunk = b"%x\r\n%b\r\n" % (50_000, b" " * 50_000)
    assert parse(served.send(f"{HEAD}{TE}\r\n".encode() + chunk * 3)).status == 413
    # Who has no key is not listened to
    head = HEAD.replace(f"{AUTH}\r\n", "") + f"Content-Length: {MAX_BODY}\r\n\r\n"
    assert parse(served.send(head.encode())).status == 401
    assert not served.fake.seen


def test_headers_between_two_servers_take_nothing_away(served: ServedGateway) -> None:
    lines = ("Connection: close, authorization, content-length, x-octavo-feature", AUTH)
    assert served.ask(CHAT, BODY, *lines).status == 200
    for answer in (
        served.ask("/admin/v1/keys", b"", "Connection: authorization", AUTH),
        served.ask(CHAT, BODY, "Connection: x-api-key"),
        served.ask(CHAT, BODY, AUTH, AUTH.replace(KEY, "another")),
        served.ask(CHAT, BODY, AUTH.replace(KEY, "another"), f"X-Api-Key: {KEY}"),
        served.ask(CHAT, BODY, AUTH.replace("Bearer", "Basic")),
        served.ask(CHAT, BODY, f"Cookie: authorization=Bearer {KEY}"),
        served.ask(f"{CHAT}?api_key={KEY}", BODY),
    ):
        assert answer.status == 401
    assert len(served.fake.seen) == 1
    sent = {name for name, _ in served.fake.seen[0].raw_headers}
    assert sent == {
        "Host", "User-Agent", "Accept-Encoding", "Content-Type", "Content-Length", "Accept",
        "X-Request-Id",
    }  # fmt: skip


def test_each_side_has_keys_of_its_own(served: ServedGateway) -> None:
    assert served.ask("/admin/v1/routes", b"", ADMIN_AUTH).status == 200
    assert served.ask("/admin/v1/routes", b"", AUTH).status == 401
    assert served.ask("/v1/models", b"", ADMIN_AUTH).status == 401
    assert served.ask(CHAT, BODY, ADMIN_AUTH).status == 401
    assert not served.fake.seen
