"""Damaged heads of GGUF files, and long arrays of strings, by native code and without."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.kernels import cpu
from octavo.weights import gguf_header
from octavo.weights.gguf import GGUFCheckpoint

if TYPE_CHECKING:
    from pathlib import Path


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


ARCHITECTURE = string("general.architecture") + struct.pack("<I", 8) + string("llama")


def build(
    entries: bytes = b"",
    num_entries: int = 0,
    tensors: bytes = b"",
    num_tensors: int = 0,
    **kw: Any,
) -> bytes:
    """A file by hand: general.architecture, then `entries`, then the tensor table, then 4 KiB."""
    version = kw.get("version", 3)
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries + 1)
    return head + ARCHITECTURE + entries + tensors + bytes(kw.get("data_len", 4096))


def tensor_entry(
    name: str = "w", shape: tuple[int, ...] = (32, 2), kind: int = 0, offset: int = 0
) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


HUGE = 2**63
NESTED = struct.pack("<IQ", 9, 1) * 50
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "magic only": (b"GGUF", "truncated"),
    "other magic": (b"GGML" + bytes(100), "not a GGUF file"),
    "version 1": (build(version=1), "version 1"),
    "version 4": (build(version=4), "version 4"),
    "entries without end": (build(num_entries=HUGE - 1), "truncated"),
    "tensors without end": (build(num_tensors=HUGE), "truncated"),
    "huge key": (build(struct.pack("<Q", HUGE) + b"x", 1), "claims"),
    "key beyond the end": (build(struct.pack("<Q", 60000) + b"x", 1), "beyond the file's end"),
    "huge string": (build(entry("k", 8, struct.pack("<Q", 2**64 - 1)), 1), "beyond the file's end"),
    "huge array": (build(entry("k", 9, struct.pack("<IQ", 4, HUGE)), 1), "truncated"),
    "huge array of strings": (build(entry("k", 9, struct.pack("<IQ", 8, HUGE)), 1), "truncated"),
    "array of empty strings to the end": (
        build(entry("k", 9, struct.pack("<IQ", 8, 513)), 1),
        "truncated",
    ),
    "arrays in arrays": (build(entry("k", 9, NESTED), 1), "nested deeper"),
    "huge array of arrays": (build(entry("k", 9, struct.pack("<IQ", 9, HUGE)), 1), "truncated"),
    "unknown type": (build(entry("k", 13, b""), 1), "unknown type 13"),
    "unknown element type": (build(entry("k", 9, struct.pack("<IQ", 77, 1)), 1), "unknown type 77"),
    "key twice": (build(entry("k", 0, b"1") * 2, 2), "occurs twice"),
    "not UTF-8": (build(entry("k", 8, string(b"\xff\xfe")), 1), "not UTF-8"),
    "key not UTF-8": (build(entry(b"\xff", 0, b"1"), 1), "not UTF-8"),
    "alignment 3": (
        build(entry("general.alignment", 4, struct.pack("<I", 3)), 1),
        "not a power of two",
    ),
    "alignment 0": (
        build(entry("general.alignment", 4, struct.pack("<I", 0)), 1),
        "not a power of two",
    ),
    "five dimensions": (build(tensors=tensor_entry(shape=(1,) * 5), num_tensors=1), "5 dimensions"),
    "unknown format": (build(tensors=tensor_entry(kind=5), num_tensors=1), "format number 5"),
    "half a block": (
        build(tensors=tensor_entry(shape=(48,), kind=3), num_tensors=1),
        "blocks of 32",
    ),
    "offset askew": (build(tensors=tensor_entry(offset=8), num_tensors=1), "not a multiple"),
    "tensor beyond the end": (
        build(tensors=tensor_entry(shape=(32, 32, 2)), num_tensors=1),
        "truncated: tensor 'w'",
    ),
    "offset beyond the end": (
        build(tensors=tensor_entry(offset=2**64 - 32), num_tensors=1),
        "truncated: tensor 'w'",
    ),
    "shape that overflows 64 bits": (
        build(tensors=tensor_entry(shape=(2**32, 2**32)), num_tensors=1),
        "truncated: tensor 'w'",
    ),
    "empty tensor of huge shape": (
        build(tensors=tensor_entry(shape=(2**40, 0)), num_tensors=1),
        "makes no sense",
    ),
    "tensor twice": (build(tensors=tensor_entry() * 2, num_tensors=2), "occurs twice"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(case: str, tmp_path: Path) -> None:
    data, message = DAMAGED[case]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as info:
        GGUFCheckpoint(path)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)


def test_the_hand_built_file_is_sound_without_damage(tmp_path: Path) -> None:
    path = tmp_path / "sound.gguf"
    path.write_bytes(build(entry("k", 0, b"\x07"), 1, tensor_entry(), 1))
    checkpoint = GGUFCheckpoint(path)
    assert checkpoint.config == {"general.architecture": "llama", "k": 7}
    assert [t.load(torch.float32).shape for t in checkpoint.tensors()] == [(2, 32)]


def test_an_empty_tensor_and_a_scalar(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(
        build(tensors=tensor_entry("e", (32, 0)) + tensor_entry("s", (), 0, 32), num_tensors=2)
    )
    shapes = {t.name: t.load(torch.float32).shape for t in GGUFCheckpoint(path).tensors()}
    assert shapes == {"e": (0, 32), "s": ()}


def test_no_architecture(tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(CheckpointError, match=r"no general\.architecture"):
        GGUFCheckpoint(path)


def test_kinds_that_are_sound_but_not_read(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    with pytest.raises(UnsupportedModelError, match="big-endian"):
        GGUFCheckpoint(path)
    path.write_bytes(build(entry("split.count", 2, struct.pack("<H", 3)), 1))
    with pytest.raises(UnsupportedModelError, match="one of 3 parts"):
        GGUFCheckpoint(path)
    path.write_bytes(build(tensors=tensor_entry(shape=(256,), kind=19), num_tensors=1))
    with pytest.raises(UnsupportedModelError, match="tensor w is stored as IQ1_S"):
        next(GGUFCheckpoint(path).tensors()).load(torch.float32)


def read_array(strings: list[bytes], rest: bytes, path: Path, num_cut: int = 0) -> list[str] | str:
    """What a file's array of these strings is read as, or why it is not; its end may be cut off."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    array = struct.pack("<IIQ", 9, 8, len(strings))
    body = b"".join(struct.pack("<Q", len(string)) + string for string in strings)
    whole = head + array + body + rest
    path.write_bytes(whole[: len(whole) - num_cut])
    reader = gguf_header.HeaderReader(path, gguf_header.map_file(path))
    try:
        found: list[str] = reader.header()[1]["k"]
        assert reader._pos == len(head + array + body)
    except CheckpointError as error:
        return str(error)
    return found


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.one_of(st.text(max_size=9).map(str.encode), st.binary(max_size=9)), max_size=12),
    st.binary(max_size=40),
    st.integers(0, 30),
)
def test_native_strings_are_those_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    strings: list[bytes],
    rest: bytes,
    num_cut: int,
) -> None:
    if cpu.why_not() is not None:
        pytest.skip("no native library")
    found = []
    for least in (1, 1 << 60):
        monkeypatch.setattr(gguf_header, "NATIVE_STRINGS", least)
        found.append(read_array(strings, rest, tmp_path / "strings.gguf", num_cut))
    assert found[0] == found[1]


@pytest.mark.parametrize("damage", ["length", "end", "utf8", "nul", "long"])
def test_damage_to_many_strings_is_told_as_to_few(
    damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    strings = [b"piece %d" % i for i in range(2000)]
    strings[700] = {"utf8": b"\xff", "nul": b"a\0b", "long": b"x" * 10**6}.get(damage, b"piece")
    rest = b"" if damage == "end" else bytes(64)
    path = tmp_path / "strings.gguf"
    found = []
    for least in (1, 1 << 60):
        monkeypatch.setattr(gguf_header, "NATIVE_STRINGS", least)
        whole = read_array(strings, rest, path)
        data = bytearray(path.read_bytes())
        if damage == "length":
            at = data.index(b"piece 1000") - 8
            data[at : at + 8] = struct.pack("<Q", 2**63 + 5)
        if damage == "end":
            del data[-30:]
        path.write_bytes(data)
        try:
            reader = gguf_header.HeaderReader(path, gguf_header.map_file(path))
            found.append(reader.header()[1]["k"])
        except CheckpointError as error:
            found.append(str(error))
        assert (found[-1] == whole) == (damage not in ("length", "end"))
    assert found[0] == found[1]
