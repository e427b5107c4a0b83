"""The book of keys: who gets in, how a wrong key is told, and what it does without its database."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import AuthenticationError
from octavo.gateway import keys
from octavo.gateway.config_keys import KeysSection
from octavo.gateway.keys import (
    KeyBook,
    KeysUnavailableError,
    StoredKey,
    digest_of,
    id_in,
    new_key,
)
from octavo.gateway.model import KeyInfo
from octavo.gateway.secret import decode_hook
from octavo.ledger.database import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

S = 10**9


class Source:
    """A database in memory, which can be away."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, StoredKey]] = {}
        self.now = 1_000_000 * S
        self.is_away = False
        self.num_reads = 0
        self.used: list[dict[str, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def put(self, key_id: str, **fields: Any) -> bytes:
        _, key = new_key(key_id)
        info = fields.pop("info", KeyInfo(key_id=key_id))
        stored = StoredKey(info=info, digest=digest_of(key.encode()), created_ns=0, **fields)
        self.rows[key_id] = self.now, stored
        return key.encode()

    def change(self, key_id: str, **fields: Any) -> None:
        self.rows[key_id] = self.now, msgspec.structs.replace(self.rows[key_id][1], **fields)

    def now_ns(self) -> int:
        return self.now

    def changed(self, since_ns: int | None) -> Sequence[StoredKey]:
        self.num_reads += 1
        self.gate.wait(5)
        if self.is_away:
            raise DatabaseUnavailableError("away")
        return [key for at, key in self.rows.values() if since_ns is None or at >= since_ns]

    def mark_used(self, times_ns: Mapping[str, int]) -> None:
        if self.is_away:
            raise DatabaseUnavailableError("away")
        self.used.append(dict(times_ns))


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def section_of(*inline: dict[str, Any], **fields: Any) -> KeysSection:
    return msgspec.convert({"inline": inline, **fields}, KeysSection, dec_hook=decode_hook)


def book_of(source: Source, clock: Clock, *inline: dict[str, Any], **fields: Any) -> KeyBook:
    section = section_of(*inline, **fields)
    return KeyBook(section, source, wall_ns=lambda: source.now, clock=clock, sleep=clock.sleep)


async def refusal(book: KeyBook, key: bytes) -> str | None:
    with pytest.raises(AuthenticationError) as caught:
        await book.find(key)
    assert caught.value.status == 401
    return caught.value.code


async def test_keys_of_the_configuration() -> None:
    other = "sha-only-key-0123456789"
    book = KeyBook(
        section_of(
            {"id": "a", "key": "inline-key-0123456789", "tenant": "t", "models": ["small*"]},
            {
                "id": "b",
                "sha256": digest_of(other.encode()).hex(),
                "expires": datetime(2020, 1, 1, tzinfo=UTC),
            },
        )
    )
    await book.start()
    info = await book.find(b"inline-key-0123456789")
    assert (info.key_id, info.tenant, info.models) == ("a", "t", ("small*",))
    assert await refusal(book, other.encode()) == "expired_api_key"
    for wrong in (
        b"",
        b"inline-key-012345678",
        b"inline-key-01234567890",
        b"\xff" * 40,
        b"x" * 9999,
    ):
        assert await refusal(book, wrong) == "invalid_api_key"
    assert await refusal(book, b"oct_a_" + b"0" * 64) == "invalid_api_key"
    await book.close()


async def test_keys_of_the_ledger() -> None:
    source, clock = Source(), Clock()
    key = source.put("one", info=KeyInfo(key_id="one", expires_ns=source.now + 100 * S))
    book = book_of(source, clock)
    await book.start()
    assert (await book.find(key)).key_id == "one"
    assert source.num_reads == 1
    assert await refusal(book, key[:-1]) == "invalid_api_key"
    assert await refusal(book, key.replace(b"one", b"two")) == "invalid_api_key"
    assert await refusal(book, b"oct_one_") == "invalid_api_key"
    source.now += 100 * S
    assert await refusal(book, key) == "expired_api_key"
    await book.close()


async def test_revocation_is_seen_by_the_next_reading() -> None:
    source = Source()
    key = source.put("one")
    book = KeyBook(section_of(refresh_s=0.1), source)
    await book.start()
    await book.find(key)
    source.change("one", revoked_ns=source.now)
    deadline = asyncio.get_running_loop().time() + 2
    while asyncio.get_running_loop().time() < deadline:
        try:
            await book.find(key)
        except AuthenticationError:
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("the key is still taken")
    await book.close()


async def test_a_new_key_works_at_once_and_wrong_ones_do_not_make_the_book_read_each_time() -> None:
    source, clock = Source(), Clock()
    book = book_of(source, clock)
    await book.start()
    clock.now += 1
    key = source.put("new")
    assert (await book.find(key)).key_id == "new"
    assert source.num_reads == 2
    # Right after a reading, too: it waits for the next one, with all others who are not known.
    key = source.put("newer")
    wrong = [refusal(book, f"oct_no{number}_00".encode()) for number in range(100)]
    found, *_ = await asyncio.gather(book.find(key), *wrong)
    assert found.key_id == "newer"
    assert source.num_reads == 3
    begin = clock.now
    for number in range(10):
        await refusal(book, f"oct_no{number}_00".encode())
    assert source.num_reads - 3 <= 1 + (clock.now - begin) / keys.MISS_S
    num_reads = source.num_reads
    clock.now += 1
    source.gate.clear()
    tasks = [asyncio.create_task(refusal(book, f"oct_no{n}_00".encode())) for n in range(50)]
    await asyncio.sleep(0.05)
    source.gate.set()
    await asyncio.gather(*tasks)
    assert source.num_reads == num_reads + 1
    await book.close()


async def test_both_keys_pass_while_a_rotation_overlaps() -> None:
    source, clock = Source(), Clock()
    old = source.put("one")
    old_digest = source.rows["one"][1].digest
    new = source.put("one", old_digest=old_digest, old_until_ns=source.now + 10 * S)
    book = book_of(source, clock)
    await book.start()
    assert (await book.find(old)) == (await book.find(new))
    source.now += 10 * S
    assert await refusal(book, old) == "invalid_api_key"
    assert (await book.find(new)).key_id == "one"
    await book.close()


async def test_every_key_costs_the_same_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    source, clock = Source(), Clock()
    known = source.put("one")
    rotated_old = source.put("two")
    old_digest = source.rows["two"][1].digest
    rotated = source.put("two", old_digest=old_digest, old_until_ns=source.now + S)
    inline = {"id": "in", "key": "inline-key-0123456789"}
    book = book_of(source, clock, inline, {"id": "in2", "sha256": "ab" * 32})
    await book.start()
    lengths: list[tuple[int, int]] = []
    genuine = hmac.compare_digest

    def counted(left: bytes, right: bytes) -> bool:
        lengths.append((len(left), len(right)))
        return genuine(left, right)

    monkeypatch.setattr(keys.hmac, "compare_digest", counted)
    presented = [
        known, rotated, rotated_old, inline["key"].encode(), known[:-1] + b"x", b"oct_one_0",
        b"oct_nobody_" + b"0" * 64, b"no key of ours", b"", b"oct__", known[:20],
    ]  # fmt: skip
    for key in presented:
        lengths.clear()
        with contextlib.suppress(AuthenticationError):
            await book.find(key)
        # Two of the configuration, two of the ledger; all of whole digests.
        assert lengths == [(32, 32)] * 4, key
    await book.close()


async def test_known_keys_pass_while_the_database_is_away_and_not_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, clock = Source(), Clock()
    key = source.put("one")
    inline = {"id": "in", "key": "inline-key-0123456789"}
    book = book_of(source, clock, inline, stale_s=60, refresh_s=2)
    await book.start()
    source.is_away = True
    clock.now += 60
    await book.refresh()
    assert book.is_stale
    await book.find(key)
    # It may be a new one: nobody can say now.
    with pytest.raises(KeysUnavailableError) as caught:
        await book.find(b"oct_new_" + b"0" * 64)
    assert caught.value.status == 503
    assert caught.value.retry_after_s
    assert await refusal(book, key[:-1] + b"x") == "invalid_api_key"
    clock.now += 3
    with pytest.raises(KeysUnavailableError):
        await book.find(key)
    await book.find(b"inline-key-0123456789")
    source.is_away = False
    await book.refresh()
    await book.find(key)
    assert "can be read again" in caplog.text
    assert key.decode() not in caplog.text
    await book.close()


async def test_a_database_that_is_away_at_the_start_is_waited_for() -> None:
    source = Source()
    key = source.put("one")
    source.is_away = True
    book = KeyBook(section_of(refresh_s=0.1), source)
    await book.start()
    with pytest.raises(KeysUnavailableError):
        await book.find(key)
    source.is_away = False
    await asyncio.sleep(0.3)
    assert (await book.find(key)).key_id == "one"
    await book.close()


async def test_use_is_kept_coarsely() -> None:
    source, clock = Source(), Clock()
    key, _ = source.put("one"), source.put("unused")
    book = book_of(source, clock, refresh_s=0.1)
    await book.start()
    for _ in range(1000):
        await book.find(key)
    assert source.used == []
    await book.close()
    assert source.used == [{"one": source.now}]


async def test_rows_that_were_deleted_by_hand_go_with_a_whole_reading() -> None:
    source, clock = Source(), Clock()
    key = source.put("one")
    book = book_of(source, clock)
    await book.start()
    del source.rows["one"]
    clock.now += keys.RELOAD_S
    await book.refresh()
    assert await refusal(book, key) == "invalid_api_key"
    assert book.num_keys == 0
    await book.close()


@given(st.binary(max_size=80))
def test_any_bytes_name_an_id_or_none(key: bytes) -> None:
    key_id = id_in(key)
    if key_id:
        assert key.startswith(f"oct_{key_id}_".encode())
    assert "_" not in key_id


def test_new_keys_are_256_random_bits() -> None:
    made = {new_key() for _ in range(100)}
    assert len({key_id for key_id, _ in made}) == 100
    for key_id, key in made:
        assert id_in(key.encode()) == key_id
        assert len(bytes.fromhex(key.rpartition("_")[2])) == 32
    assert new_key("mine")[1].startswith("oct_mine_")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"id": "a"}, "one of key and sha256"),
        ({"id": "a", "key": "0123456789abcdef", "sha256": "0" * 64}, "one of key and sha256"),
        ({"id": "a", "key": "short"}, "16 to 512"),
        ({"id": "a_b", "sha256": "0" * 64}, "regex"),
        ({"id": "a", "sha256": "0" * 63}, "regex"),
        ({"id": "a", "sha256": "0" * 64, "expires": "2027-01-01T00:00:00"}, "timezone"),
        ({"id": "a", "sha256": "0" * 64, "routes": ["files"]}, "files"),
    ],
)
def test_inline_keys_that_cannot_be_meant(key: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message) as caught:
        section_of(key)
    assert "0123456789abcdef" not in str(caught.value)


def test_no_repr_shows_a_key() -> None:
    section = section_of({"id": "a", "key": "inline-key-0123456789"})
    assert "inline-key" not in repr(section)
