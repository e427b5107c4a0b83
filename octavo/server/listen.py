"""The listening socket, before there is a server. Imports nothing heavy, so it can come first."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from octavo.errors import AddressError, ConfigError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator


class Door(Protocol):
    """What a server's configuration says of where it listens, see `config.ServerConfig`."""

    @property
    def host(self) -> str: ...  # noqa: D102
    @property
    def port(self) -> int: ...  # noqa: D102
    @property
    def uds(self) -> str | None: ...  # noqa: D102
    @property
    def ssl_certfile(self) -> str | None: ...  # noqa: D102
    @property
    def ssl_keyfile(self) -> str | None: ...  # noqa: D102


@contextlib.contextmanager
def bound(config: Door) -> Iterator[socket.socket]:
    """The socket that the configuration asks for, see `bind`; at the end it is closed.

    Raises:
        AddressError: the address cannot be had.
    """
    if config.uds is None:
        with contextlib.closing(bind(config.host, config.port)) as listener:
            yield listener
        return
    path = Path(config.uds)
    with contextlib.closing(bind_unix(path)) as listener:
        inode = path.stat().st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:  # nobody put another one in its place
                    path.unlink()


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


def bind_unix(path: Path) -> socket.socket:
    """As `bind`, a Unix socket. One that a server left behind when it was killed is replaced.

    Raises:
        AddressError: somebody listens there, or there is a file, or no such folder.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(os.fspath(path))
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise AddressError(f"cannot listen at {path}: {reason}") from None
    except AddressError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AddressError(f"cannot listen at {path}: it is there, and is no socket")
    except FileNotFoundError:
        return
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise AddressError(f"{path} is in use: stop what listens there, or give another --uds")


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


def tls_context(config: Door) -> ssl.SSLContext | None:
    """How to speak TLS, 1.2 or newer; None where the configuration has no certificate.

    Raises:
        ConfigError: certificate or key cannot be read, or do not belong together.
    """
    if config.ssl_certfile is None:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def no_password() -> str:
        raise ConfigError("the TLS key has a password: give one without (--ssl-keyfile)")

    for name in filter(None, (config.ssl_certfile, config.ssl_keyfile)):
        try:
            Path(name).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {name}: {error.strerror}") from None
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, no_password)
    except ssl.SSLError as error:
        files = " and ".join(filter(None, (config.ssl_certfile, config.ssl_keyfile)))
        reason = (error.reason or "not PEM").lower().replace("_", " ")
        raise ConfigError(f"cannot use {files} for TLS: {reason}") from None
    return context


def url_of(listener: socket.socket, *, is_tls: bool = False) -> str:
    """`http://127.0.0.1:8000`, or `unix:/run/octavo.sock`."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    scheme = "https" if is_tls else "http"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
