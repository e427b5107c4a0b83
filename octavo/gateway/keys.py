"""API keys: how they look, and who presents one.

A key is `oct_<id>_<secret>`: the id is public and stands in logs and records, the secret is 256
random bits. Only the SHA-256 of the whole key is kept. That is enough, without salt and without a
slow hash as for passwords: nobody can try 2^256 secrets, nor have tables of them, and two keys are
never equal; a slow hash would only cost every request its time.

The book answers from memory. It reads the ledger's changes every `refresh_s`, in a thread; an id
that it does not know makes it read at once, at most once in `MISS_S`, so that a new key works right
away. While the ledger cannot be read, keys pass for `stale_s` by what was read last.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from octavo.errors import AuthenticationError, EngineUnavailableError
from octavo.gateway.config_keys import MAX_KEY_LEN
from octavo.gateway.model import KeyInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from octavo.gateway.config_keys import InlineKey, KeysSection

logger = logging.getLogger("octavo.gateway")

PREFIX = "oct"
SECRET_BYTES = 32
ID_BYTES = 8

MISS_S = 0.5
"""Unknown ids make the book read the ledger at most this often."""

RELOAD_S = 300.0
"""How often all keys are read, and not only those that changed: rows that were deleted by hand."""

USED_S = 60.0
"""How often it is written when keys were used last."""

_NOBODY = hashlib.sha256(secrets.token_bytes(32)).digest()


class KeysUnavailableError(EngineUnavailableError):
    """Nobody can say now whether the key is valid."""

    def __init__(self) -> None:
        super().__init__(
            "API keys cannot be checked now, as their database does not answer",
            code="keys_unavailable",
            retry_after_s=5,
        )


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the ledger has it.

    Attributes:
        info: whom it belongs to, and what it may do.
        digest: SHA-256 of the key.
        old_digest: of the key that it had before it was rotated; empty: none passes.
        old_until_ns: when that one ends. Times are nanoseconds since 1970.
        rotated_ns: when it was rotated last.
        revoked_ns: when it was revoked; None: it was not.
        last_used_ns: within a minute or two; None: never.
    """

    info: KeyInfo
    digest: bytes
    created_ns: int
    old_digest: bytes = b""
    old_until_ns: int | None = None
    rotated_ns: int | None = None
    revoked_ns: int | None = None
    last_used_ns: int | None = None


class KeySource(Protocol):
    """Where the book reads keys (`key_store`). Called in threads, one call at a time."""

    def changed(self, since_ns: int | None) -> Sequence[StoredKey]:
        """Keys that changed at or after a time, revoked ones too; None: all.

        Raises:
            DatabaseUnavailableError: the database cannot be read now.
        """
        ...

    def now_ns(self) -> int:
        """The time by the clock that changes are stamped with."""
        ...

    def mark_used(self, times_ns: Mapping[str, int]) -> None:
        """Keep when keys were used.

        Raises:
            DatabaseUnavailableError: the database cannot be written now.
        """
        ...


def new_key(key_id: str = "") -> tuple[str, str]:
    """A new id, or the one that is given, and a new key with it."""
    key_id = key_id or secrets.token_hex(ID_BYTES)
    return key_id, f"{PREFIX}_{key_id}_{secrets.token_hex(SECRET_BYTES)}"


def digest_of(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def id_in(key: bytes) -> str:
    """The id that a key names; empty: it is not of our kind."""
    prefix, _, rest = key.partition(b"_")
    key_id, _, secret = rest.partition(b"_")
    is_ours = prefix == PREFIX.encode() and secret and key_id.isascii()
    return key_id.decode("ascii") if is_ours else ""


class KeyBook:
    """Knows the keys; implements `seams.KeyBook`.

    Args:
        section: of the configuration.
        source: the ledger's keys; None: those of the configuration are all.
        wall_ns: nanoseconds since 1970, for when keys end.
        clock: seconds, for how old the book is.
        sleep: by that clock.
    """

    def __init__(
        self,
        section: KeysSection,
        source: KeySource | None = None,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._section = section
        self._source = source
        self._wall_ns = wall_ns
        self._clock = clock
        self._sleep = sleep
        self._inline = [inline_key(key) for key in section.inline]
        self._stored: dict[str, StoredKey] = {}
        self._used: dict[str, int] = {}
        # Readings of the clock, and the time by the source's clock.
        self._read_at = self._tried_at = self._reloaded_at = self._marked_at = -1e12
        self._num_begun = self._last_ended = 0  # readings, by their number
        self._since_ns: int | None = None
        self._reading: asyncio.Task[None] | None = None
        self._refresher: asyncio.Task[None] | None = None

    @property
    def num_keys(self) -> int:
        """Keys that are known."""
        return len(self._inline) + len(self._stored)

    @property
    def is_stale(self) -> bool:
        """Whether the ledger's keys could not be read when they were last asked for."""
        return self._source is not None and self._read_at < self._tried_at

    async def start(self) -> None:
        """Read all keys, and keep them fresh from now on. A ledger that cannot be read is tried
        again and again; until then its keys get a 503.
        """
        if self._source is not None:
            await self.refresh()
            self._refresher = asyncio.create_task(self._keep_fresh())

    async def find(self, presented: bytes) -> KeyInfo:
        """Whom a presented key belongs to.

        The number of comparisons is the same for every key, known or not, and each takes the same
        time wherever the digests differ.

        Raises:
            AuthenticationError: no such key, revoked or expired.
            KeysUnavailableError: the ledger could not be read for too long.
        """
        if len(presented) > MAX_KEY_LEN:
            raise AuthenticationError("The API key is not valid", code="invalid_api_key")
        digest, key_id = digest_of(presented), id_in(presented)
        inline = self._match_inline(digest)
        is_miss = inline is None and key_id and key_id not in self._stored
        if is_miss and self._source is not None:
            await self._read_for_miss()
        stored = self._match_stored(digest, key_id)
        found = (inline, False) if stored is None else (stored, True)
        if is_miss and stored is None and self.is_stale:
            raise KeysUnavailableError
        info, is_stored = found
        if info is None:
            raise AuthenticationError("The API key is not valid", code="invalid_api_key")
        if is_stored:
            if self._clock() - self._read_at > self._section.stale_s + self._section.refresh_s:
                raise KeysUnavailableError
            self._used[info.key_id] = self._wall_ns()
        if info.expires_ns is not None and self._wall_ns() >= info.expires_ns:
            raise AuthenticationError("The API key has expired", code="expired_api_key")
        return info

    async def refresh(self) -> None:
        """Read what has changed; who asks while somebody reads gets what that one finds."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        await asyncio.shield(self._reading)

    async def _read_for_miss(self) -> None:
        """Return when the ledger has been read since now: it may have a key that is new. However
        many ask, it is read once in `MISS_S`.
        """
        num_begun = self._num_begun
        await self._sleep(max(0.0, self._tried_at + MISS_S - self._clock()))
        while self._last_ended <= num_begun:  # one that had begun before does not count
            await self.refresh()

    async def close(self) -> None:
        """Stop, and keep when keys were used last."""
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.gather(self._refresher, return_exceptions=True)
            self._refresher = None
        if self._reading is not None:
            await self._reading
        await self._mark_used()

    def _match_inline(self, digest: bytes) -> KeyInfo | None:
        """The key of the configuration with this digest. Compares with all of them."""
        found: KeyInfo | None = None
        for known, info in self._inline:
            if hmac.compare_digest(digest, known):
                found = info
        return found

    def _match_stored(self, digest: bytes, key_id: str) -> KeyInfo | None:
        """The ledger's key with this digest. Compares twice, whether there is one or not."""
        stored = self._stored.get(key_id)
        current = old = _NOBODY
        if stored is not None:
            current = stored.digest
            if stored.old_digest and self._wall_ns() < (stored.old_until_ns or 0):
                old = stored.old_digest
        is_current = hmac.compare_digest(digest, current)
        is_old = hmac.compare_digest(digest, old)
        return stored.info if stored is not None and (is_current or is_old) else None

    # Reading.

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self._section.refresh_s)
            await self.refresh()
            if self._clock() - self._marked_at >= USED_S:
                await self._mark_used()

    async def _read(self) -> None:
        """Never fails."""
        assert self._source is not None
        started = self._clock()
        self._num_begun += 1
        is_whole = self._since_ns is None or started - self._reloaded_at >= RELOAD_S
        try:
            now_ns, keys = await asyncio.to_thread(self._ask, None if is_whole else self._since_ns)
        except Exception as error:
            if not self.is_stale:
                logger.warning("API keys cannot be read: %s", error)
            self._tried_at = started
        else:
            if self.is_stale and self._since_ns is not None:
                logger.warning("API keys can be read again")
            if is_whole:
                self._stored.clear()
                self._reloaded_at = started
            for key in keys:
                if key.revoked_ns is None:
                    self._stored[key.info.key_id] = key
                else:
                    self._stored.pop(key.info.key_id, None)
            self._since_ns = now_ns
            self._tried_at = self._read_at = started
        finally:
            self._reading = None
            self._last_ended = self._num_begun

    def _ask(self, since_ns: int | None) -> tuple[int, Sequence[StoredKey]]:
        assert self._source is not None
        now_ns = self._source.now_ns()  # before reading: what changes meanwhile is read again
        return now_ns, self._source.changed(since_ns)

    async def _mark_used(self) -> None:
        used, self._used = self._used, {}
        self._marked_at = self._clock()
        if used and self._source is not None:
            try:
                await asyncio.to_thread(self._source.mark_used, used)
            except Exception as error:
                logger.warning("it is not kept when API keys were used: %s", error)
                self._used = used | self._used


def inline_key(key: InlineKey) -> tuple[bytes, KeyInfo]:
    """The digest and the owner of a key of the configuration."""
    if key.key is not None:
        digest = digest_of(key.key.reveal().encode("ascii"))
    else:
        digest = bytes.fromhex(key.sha256)
    names = set(KeyInfo.__struct_fields__) - {"key_id", "expires_ns"}
    expires_ns = None if key.expires is None else int(key.expires.timestamp()) * 10**9
    fields = {name: getattr(key, name) for name in names}
    return digest, KeyInfo(key_id=key.id, expires_ns=expires_ns, **fields)
