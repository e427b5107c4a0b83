from __future__ import annotations

import os
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.ledger.record import EngineTime, Entry, Outcome
from octavo.ledger.spill import SpillFile, encode_frame, find_spills, read_frames
from tests.ledger.examples import SETTINGS
from tests.ledger.records import attempt, escalation, usage

if TYPE_CHECKING:
    from pathlib import Path

ENTRIES: list[Entry] = [
    usage("a", tags={"team": "größe"}, ttft_ns=None),
    Outcome(id="o", time_ns=1, session_id="s", name="n", success=True, value=Decimal("0.25")),
    EngineTime(
        server="s", hour=1, time_ns=5, num_devices=2, buckets={"idle": 3}, hourly_rate_nano=4
    ),
    usage("b\x00", price_nano=17),
    attempt("d", 1, http_status=None, device_ns=None),
    escalation("d", score=None),
    *(usage(f"c{i}", e2e_ns=i) for i in range(3)),
]
FRAMES = [encode_frame(entry) for entry in ENTRIES]


def split(data: bytes) -> tuple[list[Entry], int]:
    """The entries, and how many bytes were passed over."""
    found = list(read_frames(data))
    bad = sum(item for item in found if isinstance(item, int))
    return [item for item in found if not isinstance(item, int)], bad


def test_frames_come_back() -> None:
    assert split(b"".join(FRAMES)) == (ENTRIES, 0)


@SETTINGS
@given(st.data())
def test_a_torn_tail_takes_its_own_frame_only(data: st.DataObject) -> None:
    num = data.draw(st.integers(0, len(FRAMES) - 1))
    cut = data.draw(st.integers(0, len(FRAMES[num]) - 1))
    whole = b"".join(FRAMES[:num])
    assert split(whole + FRAMES[num][:cut]) == (ENTRIES[:num], cut)


@SETTINGS
@given(st.data())
def test_bad_bytes_take_the_frames_that_they_are_in(data: st.DataObject) -> None:
    joined = bytearray(b"".join(FRAMES))
    ends = [sum(map(len, FRAMES[: i + 1])) for i in range(len(FRAMES))]
    begin = data.draw(st.integers(0, len(joined) - 1))
    end = data.draw(st.integers(begin + 1, min(len(joined), begin + 40)))
    old = bytes(joined[begin:end])
    joined[begin:end] = data.draw(st.binary(min_size=end - begin, max_size=end - begin))
    hit = [
        i
        for i in range(len(FRAMES))
        if ends[i] > begin and ends[i] - len(FRAMES[i]) < end and old != bytes(joined[begin:end])
    ]
    entries, bad = split(bytes(joined))
    sound = [entry for i, entry in enumerate(ENTRIES) if i not in hit]
    # Of the frames that were hit, those whose own bytes stayed as they were are still sound.
    assert [entry for entry in entries if entry in sound] == sound
    assert len(entries) >= len(sound)
    assert bad == sum(
        len(frame) for frame, entry in zip(FRAMES, ENTRIES, strict=True) if entry not in entries
    )


@SETTINGS
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_garbage_around_a_frame_does_not_hide_it(before: bytes, after: bytes) -> None:
    entries, bad = split(before + FRAMES[0] + after)
    assert ENTRIES[0] in entries
    if entries == [ENTRIES[0]]:
        assert bad == len(before) + len(after)


@SETTINGS
@given(st.binary(max_size=500))
def test_garbage_alone_is_nothing(data: bytes) -> None:
    entries, bad = split(data)
    assert entries == []
    assert bad == len(data)


def test_a_file_is_its_writers_until_the_writer_lets_go(tmp_path: Path) -> None:
    stem = tmp_path / "ledger.db"
    file = SpillFile(stem)
    file.append(ENTRIES[:2])
    file.append(ENTRIES[2:])
    assert list(find_spills(stem)) == []
    file.close()
    (spill,) = (found for found in find_spills(stem))
    for found in find_spills(stem):
        assert list(found.entries()) == ENTRIES
        assert list(find_spills(stem)) == []  # taken
        found.remove()
    assert list(find_spills(stem)) == []
    assert not spill.path.exists()


def test_ledgers_beside_each_other_keep_their_files_apart(tmp_path: Path) -> None:
    SpillFile(tmp_path / "a.db").close()
    SpillFile(tmp_path / "a.db.more").close()
    SpillFile(tmp_path / "[a].db").close()
    for name in ("a.db", "a.db.more", "[a].db"):
        names = [found.path.name for found in find_spills(tmp_path / name)]
        assert len(names) == 1
        assert names[0].startswith(f"{name}.")


def test_no_room_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SpillFile(tmp_path / "ledger.db")
    file.append(ENTRIES[:2])
    real, room = os.pwrite, 50

    def short(fd: int, data: bytes, offset: int) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(28, "No space left on device")
        part = real(fd, data[:room], offset)
        room -= part
        return part

    monkeypatch.setattr(os, "pwrite", short)
    with pytest.raises(OSError, match="No space"):
        file.append(ENTRIES[2:])
    assert split(file.path.read_bytes()) == (ENTRIES[:2], 0)
    room = 10**6
    file.append(ENTRIES[2:])
    assert split(file.path.read_bytes()) == (ENTRIES, 0)


def test_a_damaged_file_is_kept_beside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stem = tmp_path / "ledger.db"
    file = SpillFile(stem)
    file.append(ENTRIES)
    data = bytearray(file.path.read_bytes())
    data[20] ^= 1
    file.path.write_bytes(data)
    file.close()
    for found in find_spills(stem):
        assert list(found.entries()) == ENTRIES[1:]
        found.remove()
    assert "damaged" in caplog.text
    (kept,) = tmp_path.glob("*.damaged")
    assert kept.read_bytes() == data
