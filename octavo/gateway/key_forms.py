"""Keys as the admin API and the command line write them: what is asked for, and what is shown."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from octavo.errors import InvalidRequestError
from octavo.gateway.config_keys import KeyId
from octavo.gateway.model import KeyInfo, Route
from octavo.planning.cost_query import from_ns, to_ns

if TYPE_CHECKING:
    from collections.abc import Collection

    from octavo.gateway.keys import StoredKey

_PLAIN = r"^[^\x00-\x1f\x7f]*\Z"
Text = Annotated[str, Meta(max_length=128, pattern=_PLAIN)]
Pattern = Annotated[str, Meta(min_length=1, max_length=256, pattern=_PLAIN)]
_Patterns = Annotated[tuple[Pattern, ...], Meta(max_length=256)]
_Names = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=100)], ...], Meta(max_length=64)
]
_Tags = Annotated[
    dict[
        Annotated[str, Meta(min_length=1, max_length=64, pattern=_PLAIN)],
        Annotated[str, Meta(max_length=512, pattern=_PLAIN)],
    ],
    Meta(max_length=16),
]
_Tokens = Annotated[int, Meta(ge=1, le=10**9)]
_Time = Annotated[datetime, Meta(tz=True)]

Status = Literal["active", "expired", "revoked"]


class KeyPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What to change of a key; fields as `model.KeyInfo` has them. What is left out stays.

    Attributes:
        expires: a time with a zone, as 2027-01-31T00:00:00Z; null: never.
        expires_in_s: instead: so long from now.
    """

    name: Text | UnsetType = UNSET
    tenant: Text | UnsetType = UNSET
    team: Text | UnsetType = UNSET
    features: _Patterns | UnsetType = UNSET
    models: _Patterns | UnsetType = UNSET
    routes: tuple[Route, ...] | UnsetType = UNSET
    tags: _Tags | UnsetType = UNSET
    max_tokens: _Tokens | UnsetType | None = UNSET
    default_max_tokens: _Tokens | UnsetType | None = UNSET
    requires_max_tokens: bool | UnsetType = UNSET
    limits: _Names | UnsetType = UNSET
    budgets: _Names | UnsetType = UNSET
    expires: _Time | UnsetType | None = UNSET
    expires_in_s: Annotated[float, Meta(gt=0, le=100 * 365.25 * 86_400)] | UnsetType = UNSET

    def changes(self) -> dict[str, Any]:
        """Fields of `KeyInfo`, and their new values.

        Raises:
            InvalidRequestError: both times are given, or a default is above the ceiling.
        """
        fields = {
            name: value
            for name in KeyInfo.__struct_fields__
            if (value := getattr(self, name, UNSET)) is not UNSET
        }
        if self.expires_in_s is not UNSET and self.expires is not UNSET:
            raise InvalidRequestError("give one of expires and expires_in_s", param="expires_in_s")
        if self.expires_in_s is not UNSET:
            fields["expires_ns"] = time.time_ns() + int(self.expires_in_s * 1e9)
        elif self.expires is not UNSET:
            fields["expires_ns"] = None if self.expires is None else to_ns(self.expires)
        return fields


class KeyCreate(KeyPatch, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A key to make. What is left out is not restricted.

    Attributes:
        id: its public name; left out: a random one. No underscore.
    """

    id: KeyId | UnsetType = UNSET

    def info(self) -> KeyInfo:
        """Whom it is for and what it may do.

        Raises:
            InvalidRequestError: see `KeyPatch.changes`.
        """
        return KeyInfo(key_id="" if self.id is UNSET else self.id, **self.changes())


class KeyRotate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How to rotate a key.

    Attributes:
        overlap_s: how long the old one passes beside the new one, seconds; 0: it ends now.
    """

    overlap_s: Annotated[float, Meta(ge=0, le=90 * 86_400)] = 86_400.0


class KeyRevoke(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Why a key is revoked, for the audit log."""

    reason: Annotated[str, Meta(max_length=500, pattern=_PLAIN)] = ""


class KeyView(msgspec.Struct, kw_only=True):
    """A key, shown. Times are UTC.

    Attributes:
        key: the key itself, in the answer that makes or rotates it and nowhere else.
        old_key_until: how long the key before the last rotation passes; null: it does not.
        last_used: within two minutes; null: never.
    """

    id: str
    status: Status
    name: str
    tenant: str
    team: str
    features: tuple[str, ...]
    models: tuple[str, ...]
    routes: tuple[Route, ...]
    tags: dict[str, str]
    max_tokens: int | None
    default_max_tokens: int | None
    requires_max_tokens: bool
    limits: tuple[str, ...]
    budgets: tuple[str, ...]
    created: datetime
    expires: datetime | None
    rotated: datetime | None
    old_key_until: datetime | None
    revoked: datetime | None
    last_used: datetime | None
    key: str | UnsetType = UNSET


def view_of(stored: StoredKey, key: str = "", *, now_ns: int | None = None) -> KeyView:
    """A key, shown.

    Args:
        stored: what is kept of it.
        key: itself, where it was made just now.
        now_ns: nanoseconds since 1970; None: now.
    """
    info = stored.info
    now = time.time_ns() if now_ns is None else now_ns
    status: Status = "active"
    if stored.revoked_ns is not None:
        status = "revoked"
    elif info.expires_ns is not None and info.expires_ns <= now:
        status = "expired"
    has_old = stored.old_until_ns is not None and stored.old_until_ns > now
    names = set(KeyView.__struct_fields__) & set(KeyInfo.__struct_fields__)
    return KeyView(
        id=info.key_id,
        status=status,
        created=from_ns(stored.created_ns).replace(microsecond=0),
        expires=to_time(info.expires_ns),
        rotated=to_time(stored.rotated_ns),
        old_key_until=to_time(stored.old_until_ns) if has_old else None,
        revoked=to_time(stored.revoked_ns),
        last_used=to_time(stored.last_used_ns),
        key=key or UNSET,
        **{name: getattr(info, name) for name in names},
    )


def check_names(
    changes: dict[str, Any], limits: Collection[str] | None, budgets: Collection[str] | None
) -> None:
    """Refuse names of limits and budgets that the configuration does not have.

    Args:
        changes: of a key.
        limits: names in the configuration; None: not known here.
        budgets: likewise.

    Raises:
        InvalidRequestError: names the field.
    """
    for field, known in (("limits", limits), ("budgets", budgets)):
        for name in changes.get(field, ()):
            if known is not None and name not in known:
                raise InvalidRequestError(
                    f"{field}: the configuration has no {name!r}; it has: "
                    f"{', '.join(known) or 'none'}",
                    param=field,
                )


def to_time(time_ns: int | None) -> datetime | None:
    """The time in UTC, cut to whole seconds."""
    return None if time_ns is None else from_ns(time_ns).replace(microsecond=0)
