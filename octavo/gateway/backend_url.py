"""Where a backend is, as its URL says, and whether a gateway may go there. Pure.

A gateway that sent requests wherever a URL points would fetch the machine's own credentials for
whoever writes the URL: https://owasp.org/www-community/attacks/Server_Side_Request_Forgery
"""

from __future__ import annotations

import ipaddress
from typing import Literal, NamedTuple
from urllib.parse import urlsplit


class Address(NamedTuple):
    """Where a backend listens.

    Attributes:
        host: name or address, without brackets; empty with a socket.
        path: put before a route's own, without `/v1`: `/v1` where the URL has no path.
        root: path below which `/health` and the like are.
        socket: path of a Unix socket, or empty.
    """

    scheme: Literal["http", "https", "unix"]
    host: str
    port: int
    path: str
    root: str
    socket: str = ""

    @property
    def authority(self) -> str:
        """The header `Host`."""
        if self.socket:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_usual = self.port == (443 if self.scheme == "https" else 80)
        return host if is_usual else f"{host}:{self.port}"


def parse_url(url: str) -> Address:
    """Where a URL points.

    Raises:
        ValueError: it is none that a backend can have; says why, without what it has of secrets.
    """
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if path.startswith("//"):
            path = path[2:]
        if not path.startswith("/") or not path.isprintable() or len(path.encode()) > 107:
            raise ValueError("url must be unix:/path, at most 107 bytes")
        return Address("unix", "", 0, "/v1", "", path)
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("url must be printable ASCII without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("url is not a URL: write https://host:port/v1") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("url must begin with http://, https:// or unix:/")
    if parts.username is not None or parts.password is not None:
        raise ValueError("url must not have a user or password: use api_key")
    if parts.query or parts.fragment:
        raise ValueError("url must not have a query or a fragment")
    if port == 0:
        raise ValueError("url must have a port from 1 to 65535")
    path = parts.path.rstrip("/")
    if any(part in (".", "..") for part in path.split("/")):
        raise ValueError("url must not have . or .. in its path")
    return Address(
        "https" if parts.scheme == "https" else "http",
        parts.hostname,
        port or (443 if parts.scheme == "https" else 80),
        path or "/v1",
        path.removesuffix("/v1"),
    )


def is_link_local(host: str) -> bool:
    """Whether an address is one that only the machine's own network has, where clouds have their
    metadata service: 169.254.0.0/16, fe80::/10, Amazon's fd00:ec2::/32, and these as IPv4 in IPv6.

    Names are not looked up here: see `upstream`, which checks the address that it connects to.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.rstrip(".").lower() in _METADATA_NAMES
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or _nat64(address)
        if inner is not None:
            address = inner
    return address.is_link_local or any(
        address.version == net.version and address in net for net in _METADATA_NETS
    )


_METADATA_NETS = (
    ipaddress.ip_network("fd00:ec2::/32"),
    ipaddress.ip_network("100.100.100.200/32"),
)
_METADATA_NAMES = frozenset(("metadata.google.internal", "metadata"))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
