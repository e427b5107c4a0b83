"""The listening socket, before there is a server. Imports nothing heavy, so it can come first."""

from __future__ import annotations

import errno
import socket

from octavo.errors import AddressError


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address but does not listen yet: nobody is let in before we are ready.

    Raises:
        AddressError: the port is taken, the host is not ours or does not resolve.
    """
    try:
        infos = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = infos[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressError(f"cannot listen at host {host!r}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise address_error(error, host, port) from None
    return listener


def address_error(error: OSError, host: str, port: int) -> AddressError:
    """What went wrong with an address, for its user."""
    if error.errno == errno.EADDRINUSE:
        return AddressError(f"port {port} is in use: stop what listens there, or give --port")
    return AddressError(f"cannot listen at {host}:{port}: {error.strerror}")


def listen(listener: socket.socket) -> None:
    """Let clients in.

    Raises:
        AddressError: somebody else listens at the address by now.
    """
    try:
        listener.listen(2048)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise address_error(error, host, port) from None


def url_of(listener: socket.socket) -> str:
    """`http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
