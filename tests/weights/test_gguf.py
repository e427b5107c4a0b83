"""The GGUF reader against the `gguf` package's, and against damaged files."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from octavo.kernels import cpu
from octavo.weights import gguf as gguf_files
from octavo.weights import store
from octavo.weights.gguf import GGUFCheckpoint
from tests.full import FULL

if TYPE_CHECKING:
    from pathlib import Path

F32 = gguf.GGMLQuantizationType.F32


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with every kind of metadata value and several tensor formats."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("smäll")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -5)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -1234)
    writer.add_uint32("t.u32", 4_000_000_000)
    writer.add_int32("t.i32", -2_000_000_000)
    writer.add_uint64("t.u64", 2**63 + 5)
    writer.add_int64("t.i64", -(2**62))
    writer.add_float32("t.f32", 0.1)
    writer.add_float64("t.f64", 0.1)
    writer.add_bool("t.bool", True)
    writer.add_string("t.str", "")
    writer.add_array("t.ints", [1, -2, 3])
    writer.add_array("t.floats", [0.5, 0.25])
    writer.add_array("t.bools", [True, False, True])
    writer.add_token_list(["<s>", "</s>", "héllo", "▁the", "日本"])
    writer.add_token_scores([0.0, -1.5, -2.25, -3.0, -4.0])
    writer.add_token_types([3, 3, 1, 1, 1])
    rng = np.random.default_rng(0)
    writer.add_tensor("norm.weight", rng.normal(size=64).astype(np.float32))
    writer.add_tensor("half.weight", rng.normal(size=(3, 32)).astype(np.float16))
    weights = rng.normal(size=(6, 64)).astype(np.float32)
    for name in ("Q4_1", "Q8_0", "Q5_0", "BF16"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    for name in ("Q4_K", "Q6_K"):
        kind = gguf.GGMLQuantizationType[name]
        block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
        codes = rng.integers(0, 60, (2, 3, 2 * block_bytes), dtype=np.uint8)
        writer.add_tensor(f"{name}.weight", codes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_equals_reference(path: Path) -> None:
    reference = gguf.GGUFReader(path)
    checkpoint = GGUFCheckpoint(path)
    fields: dict[str, Any] = {
        name: field.contents()
        for name, field in reference.fields.items()
        if not name.startswith("GGUF.")
    }
    assert dict(checkpoint.config) == fields
    assert checkpoint.architecture == fields["general.architecture"]
    ours = {tensor.name: tensor for tensor in checkpoint.tensors()}
    assert set(ours) == {tensor.name for tensor in reference.tensors}
    assert checkpoint.num_bytes == sum(int(tensor.n_bytes) for tensor in reference.tensors)
    for tensor in reference.tensors:
        mine = ours[tensor.name]
        assert mine.shape == tuple(reversed([int(extent) for extent in tensor.shape]))
        assert mine.dtype == tensor.tensor_type.name
        assert mine.num_bytes == int(tensor.n_bytes)
        packed = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1)
        assert np.array_equal(mine.packed().reshape(-1), packed)
        want = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        want = torch.from_numpy(np.array(want, np.float32)).reshape(mine.shape)
        assert torch.equal(mine.load(torch.float32), want)
        assert torch.equal(mine.load(torch.bfloat16), want.to(torch.bfloat16))
    checkpoint.close()


def test_equals_the_gguf_package(small_file: Path) -> None:
    assert_equals_reference(small_file)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2", pytest.param("gemma3-270m", marks=FULL)])
def test_real_files_equal_the_gguf_package(name: str) -> None:
    try:
        path = store.resolve(name)
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    assert_equals_reference(path)


def test_tensors_come_in_the_order_of_the_file(small_file: Path) -> None:
    checkpoint = GGUFCheckpoint(small_file)
    offsets = [tensor.offset for tensor in checkpoint.tensors()]
    assert offsets == sorted(offsets)
    assert len(offsets) == 8
    assert checkpoint.format == "gguf"
    assert checkpoint.generation_config == {}


def test_packed_rows_and_their_life_after_close(small_file: Path) -> None:
    checkpoint = GGUFCheckpoint(small_file)
    tensor = next(t for t in checkpoint.tensors() if t.name == "Q4_K.weight")
    packed = tensor.packed()
    assert packed.shape == (6, 2 * 144)
    assert not packed.flags.writeable
    before = packed.copy()
    loaded = tensor.load(torch.float32)
    checkpoint.close()
    assert np.array_equal(packed, before)
    assert loaded.shape == (2, 3, 512)


def test_close_unmaps_when_no_view_is_alive(small_file: Path) -> None:
    checkpoint = GGUFCheckpoint(small_file)
    loaded = [tensor.load(torch.float32) for tensor in checkpoint.tensors()]
    checkpoint.close()
    assert checkpoint.mapped().closed
    assert all(torch.isfinite(values).all() for values in loaded)


def test_metadata_needs_neither_torch_nor_numpy(small_file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from octavo.weights.open import open_checkpoint\n"
        f"checkpoint = open_checkpoint(Path({str(small_file)!r}))\n"
        "assert checkpoint.architecture == 'llama'\n"
        "assert sum(t.num_bytes for t in checkpoint.tensors()) == checkpoint.num_bytes\n"
        "print(sorted({'torch', 'numpy', 'gguf'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- damaged files -------------------------------------------------------------------------------


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


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            GGUFCheckpoint(path)


def read_all(path: Path) -> None:
    """Open, load everything, close: or CheckpointError, and nothing else."""
    try:
        checkpoint = GGUFCheckpoint(path)
    except (CheckpointError, UnsupportedModelError):
        return
    for tensor in checkpoint.tensors():
        with contextlib.suppress(UnsupportedModelError):
            assert tensor.load(torch.float32).shape == tensor.shape
    checkpoint.close()


def test_truncated_anywhere_is_found_at_open(small_file: Path, tmp_path: Path) -> None:
    data = small_file.read_bytes()
    path = tmp_path / "cut.gguf"
    metadata_end = len(data) - GGUFCheckpoint(small_file).num_bytes
    cuts = {*range(200), *range(200, metadata_end, 7), *range(metadata_end, len(data), 501)}
    last = max(GGUFCheckpoint(small_file).tensors(), key=lambda tensor: tensor.offset)
    for cut in {*cuts, last.offset + last.num_bytes - 1}:
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError):
            GGUFCheckpoint(path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bytes(small_file: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(small_file.read_bytes())
    metadata_end = len(content) - GGUFCheckpoint(small_file).num_bytes
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, metadata_end))
        content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    path = tmp_path / "flipped.gguf"
    path.write_bytes(content)
    read_all(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.binary(max_size=300), counts=st.tuples(st.integers(0, 3), st.integers(0, 5)))
def test_random_bodies(tmp_path: Path, body: bytes, counts: tuple[int, int]) -> None:
    path = tmp_path / "random.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + body)
    read_all(path)


def read_array(strings: list[bytes], rest: bytes, path: Path, num_cut: int = 0) -> list[str] | str:
    """What a file's array of these strings is read as, or why it is not; its end may be cut off."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    array = struct.pack("<IIQ", 9, 8, len(strings))
    body = b"".join(struct.pack("<Q", len(string)) + string for string in strings)
    whole = head + array + body + rest
    path.write_bytes(whole[: len(whole) - num_cut])
    reader = gguf_files._Reader(path, gguf_files._map_file(path))
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
        monkeypatch.setattr(gguf_files, "NATIVE_STRINGS", least)
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
        monkeypatch.setattr(gguf_files, "NATIVE_STRINGS", least)
        whole = read_array(strings, rest, path)
        data = bytearray(path.read_bytes())
        if damage == "length":
            at = data.index(b"piece 1000") - 8
            data[at : at + 8] = struct.pack("<Q", 2**63 + 5)
        if damage == "end":
            del data[-30:]
        path.write_bytes(data)
        try:
            reader = gguf_files._Reader(path, gguf_files._map_file(path))
            found.append(reader.header()[1]["k"])
        except CheckpointError as error:
            found.append(str(error))
        assert (found[-1] == whole) == (damage not in ("length", "end"))
    assert found[0] == found[1]
