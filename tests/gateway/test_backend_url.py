"""Which URLs a backend may have, and which addresses are refused."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.gateway.backend_url import is_link_local, parse_url


@pytest.mark.parametrize(
    ("url", "scheme", "authority", "path", "root"),
    [
        ("http://10.0.0.3:8000", "http", "10.0.0.3:8000", "/v1", ""),
        ("http://10.0.0.3:8000/", "http", "10.0.0.3:8000", "/v1", ""),
        ("http://engine/v1/", "http", "engine", "/v1", ""),
        ("https://api.openai.com/v1", "https", "api.openai.com", "/v1", ""),
        ("https://a:8443/x/v1", "https", "a:8443", "/x/v1", "/x"),
        (
            "https://generativelanguage.googleapis.com/v1beta/openai/",
            "https",
            "generativelanguage.googleapis.com",
            "/v1beta/openai",
            "/v1beta/openai",
        ),
        ("http://[2001:db8::1]:80/v1", "http", "[2001:db8::1]", "/v1", ""),
        ("unix:/run/o.sock", "unix", "localhost", "/v1", ""),
        ("unix:///run/o.sock", "unix", "localhost", "/v1", ""),
    ],
)
def test_good_urls(url: str, scheme: str, authority: str, path: str, root: str) -> None:
    address = parse_url(url)
    assert (address.scheme, address.authority) == (scheme, authority)
    assert (address.path, address.root) == (path, root)
    assert address.socket == ("/run/o.sock" if scheme == "unix" else "")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://a/v1",
        "file:///etc/passwd",
        "gopher://a",
        "http://",
        "http:///v1",
        "http://user:secret@a/v1",
        "http://a/v1?key=secret",
        "http://a/v1#b",
        "http://a/../v1",
        "http://a:0/v1",
        "http://a:99999/v1",
        "http://a b/v1",
        "http://a/v1\r\nX: y",
        "http://ä/v1",
        "http://[::1/v1",
        "unix:relative",
        "unix:/" + "a" * 120,
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(ValueError, match="url") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "2002:a9fe:a9fe::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "metadata.google.internal",
        "METADATA.google.internal.",
    ],
)
def test_where_credentials_are(host: str) -> None:
    assert is_link_local(host)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.3", "::1", "fd12::1", "8.8.8.8", "api.openai.com", "fe80.example"]
)
def test_where_they_are_not(host: str) -> None:
    assert not is_link_local(host)


@given(st.integers(0, 2**32 - 1))
def test_all_addresses_as_the_library_has_them(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    expected = address in ipaddress.ip_network("169.254.0.0/16") or str(address) == (
        "100.100.100.200"
    )
    assert is_link_local(str(address)) == expected
    assert is_link_local(f"::ffff:{address}") == expected


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_a_reason(text: str) -> None:
    try:
        assert parse_url(f"http://{text}").host
    except ValueError as error:
        assert str(error).startswith("url ")  # noqa: PT017
