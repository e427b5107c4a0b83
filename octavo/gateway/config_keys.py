"""The section `keys` of the configuration: who may call, and how the ledger's keys are read."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from octavo.gateway.model import Route
from octavo.gateway.secret import Secret

KeyId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.-]{1,64}\Z")]
"""No underscore: it parts an id from a secret."""

MIN_KEY_LEN = 16
MAX_KEY_LEN = 512


class InlineKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that stands here and not in the ledger. What is empty is not restricted.

    Attributes:
        id: public name of the key, in logs, records and limits; letters, digits, `.` and `-`.
        key: what callers present, as `${NAME}` from the environment or `file:/path`; printable
            ASCII, 16 to 512 characters.
        sha256: instead of `key`: its SHA-256, hexadecimal.
        name: for people.
        tenant: whom it belongs to, for limits, budgets and the backends' cache salt.
        team: likewise, for limits and budgets.
        features: tags that the key may set, shell patterns; the first is used where the caller
            names none.
        models: names and aliases that it may ask for, shell patterns.
        routes: what it may use: chat, completions, embeddings, messages, responses, score, rerank.
        tags: put on every record, over the caller's.
        max_tokens: ceiling of a request's output, tokens; larger ones are clamped.
        default_max_tokens: for requests that name none.
        requires_max_tokens: requests that name none are refused.
        limits: names of limits with `holds_for: named` that hold for it.
        budgets: likewise, of budgets.
        expires: when it ends, as 2027-01-31T00:00:00Z.
    """

    id: KeyId
    key: Secret | None = None
    sha256: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    name: Annotated[str, Meta(max_length=200)] = ""
    tenant: Annotated[str, Meta(max_length=200)] = ""
    team: Annotated[str, Meta(max_length=200)] = ""
    features: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    tags: dict[str, str] = {}
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    default_max_tokens: Annotated[int, Meta(ge=1)] | None = None
    requires_max_tokens: bool = False
    limits: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    expires: Annotated[datetime, Meta(tz=True)] | None = None

    def __post_init__(self) -> None:
        """Refuse a key that cannot be checked, or can be guessed.

        Raises:
            ValueError: says what to give; never the key.
        """
        if (self.key is None) == (not self.sha256):
            raise ValueError("give one of key and sha256")
        if self.key is not None:
            text = self.key.reveal()
            is_fit = MIN_KEY_LEN <= len(text) <= MAX_KEY_LEN
            if not is_fit or not (text.isascii() and text.isprintable()):
                raise ValueError(
                    f"key must be {MIN_KEY_LEN} to {MAX_KEY_LEN} printable ASCII characters"
                )
            if text != text.strip():
                raise ValueError("key begins or ends with a space")


class KeysSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may call.

    Attributes:
        required: requests without a valid key are refused; off, who brings none is let in without
            a name, and a wrong key is refused all the same.
        inline: keys that stand here; those in the ledger count besides.
        refresh_s: how often changes of the ledger's keys are read, seconds: a key that another
            process revoked is refused after this and the time that the reading takes.
        stale_s: how long the ledger's keys pass while the ledger cannot be read, seconds; after
            that they get a 503. Keys that stand here pass always.
    """

    required: bool = True
    inline: tuple[InlineKey, ...] = ()
    refresh_s: Annotated[float, Meta(ge=0.1, le=60)] = 2.0
    stale_s: Annotated[float, Meta(ge=0, le=7 * 86_400)] = 600.0
