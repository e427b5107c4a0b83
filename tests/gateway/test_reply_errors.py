"""Whose fault an error is, and what is told of it."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from octavo.gateway.model import PATHS
from octavo.gateway.reply_errors import (
    clean,
    failure_of,
    is_callers_fault,
    message_of,
    refusal_of,
    retry_after,
    status_of,
)


@pytest.mark.parametrize("status", [400, 406, 409, 413, 415, 422, 451])
def test_the_callers_fault(status: int) -> None:
    assert all(is_callers_fault(status, route) for route in PATHS.values())


@pytest.mark.parametrize("status", [301, 401, 402, 403, 408, 425, 429, 500, 502, 503, 529, 600])
def test_not_the_callers_fault(status: int) -> None:
    assert not any(is_callers_fault(status, route) for route in PATHS.values())
    error = failure_of("a", status, "why")
    assert error.status in (502, 503, 504)
    assert error.may_retry
    assert status_of(error) in ("error", "timeout", "rate_limited")
    assert str(status) in error.message or status == 429


def test_what_is_not_there() -> None:
    assert is_callers_fault(404, "responses")  # a stored response
    assert not is_callers_fault(404, "chat")  # a model that the configuration promises


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"", None),
        (b"7", 7),
        (b" 7 ", 7),
        (b"0.2", 1),
        (b"0", 0),
        (b"-3", 0),
        (b"1e9", 86_400),
        (b"inf", 86_400),
        (b"nan", None),
        (b"soon", None),
        (b"Wed, 21 Oct 2015 07:28:00 GMT", 0),
        (b"\xff", None),
    ],
)
def test_retry_after(value: bytes, seconds: int | None) -> None:
    assert retry_after(value) == seconds


def test_retry_after_a_date() -> None:
    after = retry_after(formatdate(time.time() + 30, usegmt=True).encode())
    assert after is not None
    assert 28 <= after <= 31


def test_messages_without_keys() -> None:
    assert message_of(b'{"error":{"message":"no\\n such"}}') == "no such"
    assert message_of(b"<html>\n Bad  Gateway") == "<html> Bad Gateway"
    assert clean("key abc123 was bad", ["abc123"]) == "key *** was bad"
    assert clean("Incorrect API key provided: sk-proj-****abcd.", []).endswith(": ***")
    assert "AIza" not in clean("AIzaSyA1234567890 is not valid", [])
    assert clean("The model gpt-4o-mini-2024-07-18 is overloaded", []).startswith(
        "The model gpt-4o"
    )
    assert len(clean("x" * 5000, [])) == 300


def test_a_refusal_in_a_stream_says_what_the_backend_says() -> None:
    body = b'{"error": {"message": "too long", "type": "a", "param": "b", "code": 7}}'
    error = refusal_of("a", 413, body)
    assert (error.status, error.message, error.type) == (413, "too long", "a")
    assert (error.param, error.code) == ("b", "7")
    for body in (b"<html>no", b'{"error": "no"}', b"[]", b""):
        error = refusal_of("a", 422, body)
        assert (error.status, error.type) == (422, "invalid_request_error")
        assert error.message
    assert refusal_of("a", 200, b"{}").status == 502
