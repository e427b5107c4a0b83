"""The sections `server`, `ledger` and `admin` of the configuration: where the gateway listens,
where its records go, and who may administer it. Values only.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from octavo.gateway.secret import Secret

MIN_ADMIN_KEY_LEN = 16


class ServerSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the gateway listens, and what it takes. Changes of the first five need a new start.

    Attributes:
        host: address to listen at; 0.0.0.0 is every one.
        port: to listen at; 0 takes a free one.
        uds: a Unix socket to listen at instead, its path.
        ssl_certfile: certificate, PEM: the gateway speaks TLS.
        ssl_keyfile: its key, if that is not in the same file.
        max_body_bytes: longer requests get a 413.
        max_header_bytes: of a request's URL and headers; longer ones get a 431. A change needs a
            new start.
        shutdown_timeout: how long requests may take to end when the gateway is told to, seconds.
        default_max_tokens: for requests that bound their answer's length by nothing, where their
            key has no default of its own; left out: the model's context is what they may use.
        keep_alive_s: seconds of silence in a stream after which its client gets a comment, so that
            no proxy gives it up while a backend has not begun, or a judge holds the answer back.
            The first one sends the head: what fails later is an event. 0: none.
        log_level: of the gateway's log. A change needs a new start.
    """

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8080
    uds: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    max_body_bytes: Annotated[int, Meta(ge=1024, le=2**31)] = 32 * 1024**2
    max_header_bytes: Annotated[int, Meta(ge=1024, le=2**24)] = 64 * 1024
    shutdown_timeout: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    default_max_tokens: Annotated[int, Meta(ge=1)] | None = None
    keep_alive_s: Annotated[float, Meta(ge=0, le=86_400)] = 15.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: a TLS key without a certificate.
        """
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")


class LedgerSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where records, keys and the audit log are kept. A change needs a new start.

    Attributes:
        url: `sqlite:///path/ledger.db`, `postgresql://user@host/database`, or a file's path. Left
            out: nothing is kept, and keys are those of the configuration.
        retention_days: raw records are deleted after this, hourly sums stay; left out: never.
    """

    url: Secret | None = None
    retention_days: Annotated[float, Meta(gt=0)] | None = None


class AdminSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may use `/admin`. Without keys nobody may.

    Attributes:
        keys: name, which stands in the audit log, and key: as `${NAME}` from the environment or
            `file:/path`; at least 16 characters.
    """

    keys: dict[Annotated[str, Meta(pattern=r"^[A-Za-z0-9._@-]{1,64}\Z")], Secret] = {}

    def __post_init__(self) -> None:
        """Refuse keys that can be guessed.

        Raises:
            ValueError: one is too short; names it and never shows it.
        """
        for name, key in self.keys.items():
            if len(key.reveal()) < MIN_ADMIN_KEY_LEN:
                raise ValueError(f"keys.{name} must have at least {MIN_ADMIN_KEY_LEN} characters")
