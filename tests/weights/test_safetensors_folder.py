"""Hugging Face folders against safetensors' own loader, and damaged ones."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.weights.safetensors_folder import FolderCheckpoint

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8}


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 8, generator=generator)
    return {
        "a.f32": values,
        "a.bf16": values.to(torch.bfloat16) * 3,
        "a.f16": values.to(torch.float16),
        "a.f64": values.to(torch.float64),
        "b.i64": torch.arange(-3, 5),
        "b.i32": torch.arange(4, dtype=torch.int32),
        "b.i16": torch.arange(5, dtype=torch.int16),
        "b.u8": torch.arange(7, dtype=torch.uint8),
        "b.i8": torch.arange(-3, 3, dtype=torch.int8),
        "b.bool": torch.tensor([True, False, True]),
        "c.f8": values.to(torch.float8_e4m3fn),
        "c.f8e5": values.to(torch.float8_e5m2),
        "d.scalar": torch.tensor(2.5),
        "d.empty": torch.zeros(0, 4),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def single(folder: Path) -> Path:
    save_file(some_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def sharded(folder: Path) -> Path:
    tensors = some_tensors()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_equals_safetensors_own_loader(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    reference: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        reference |= load_file(file)
    checkpoint = FolderCheckpoint(folder)
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert checkpoint.config == CONFIG
    assert checkpoint.generation_config == {}
    assert checkpoint.format == "safetensors"
    tensors = list(checkpoint.tensors())
    assert sorted(tensor.name for tensor in tensors) == sorted(reference)
    assert checkpoint.num_bytes == sum(t.numel() * t.itemsize for t in reference.values())
    for tensor in tensors:
        want = reference[tensor.name]
        assert tensor.shape == tuple(want.shape)
        assert f"torch.{tensor.dtype}" == str(want.dtype)
        assert tensor.num_bytes == want.numel() * want.itemsize
        got = tensor.load(want.dtype)
        assert got.dtype == want.dtype
        assert torch.equal(got.float(), want.float())
        assert torch.equal(tensor.load(torch.float32), want.to(torch.float32))
        assert torch.equal(tensor.load(torch.bfloat16), want.to(torch.bfloat16))
    checkpoint.close()


def test_tensors_come_in_the_order_of_the_file(sharded: Path) -> None:
    places = [
        (str(tensor._shard.path), tensor.offset) for tensor in FolderCheckpoint(sharded).tensors()
    ]
    assert places == sorted(places)


def test_generation_config(single: Path) -> None:
    (single / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert FolderCheckpoint(single).generation_config == {"eos_token_id": [1, 2]}


def test_loaded_tensors_do_not_alias_the_file(single: Path) -> None:
    checkpoint = FolderCheckpoint(single)
    tensor = next(t for t in checkpoint.tensors() if t.name == "a.f32")
    first = tensor.load(torch.float32)
    first.zero_()
    assert torch.equal(tensor.load(torch.float32), some_tensors()["a.f32"])


def test_a_file_cut_off_after_it_was_opened(single: Path) -> None:
    checkpoint = FolderCheckpoint(single)
    file = single / "model.safetensors"
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 1)
    last = list(checkpoint.tensors())[-1]
    with pytest.raises(CheckpointError, match="truncated: ends at byte"):
        last.load(torch.float32)


# --- what is wrong with folders ------------------------------------------------------------------


def expect(folder: Path, message: str, kind: type[Exception] = CheckpointError) -> None:
    with pytest.raises(kind, match=message) as info:
        FolderCheckpoint(folder)
    assert str(folder) in str(info.value)
    assert "\n" not in str(info.value)


def test_no_config(tmp_path: Path) -> None:
    expect(tmp_path, r"no config\.json")


def test_bad_config(single: Path) -> None:
    config = single / "config.json"
    cases = {
        "{": "not valid JSON",
        "[]": "not a JSON object",
        "[" * 100_000: "not valid JSON",
        '{"a": 1, "a": 2}': "occurs twice",
        "{}": "names no architectures",
        '{"architectures": []}': "names no architectures",
        '{"architectures": [7]}': "names no architectures",
    }
    for text, message in cases.items():
        config.write_text(text)
        expect(single, message)
    config.write_bytes(b'{"a": "\xff"}')
    expect(single, "not valid JSON")


def test_no_weights(folder: Path) -> None:
    expect(folder, r"has no model\.safetensors")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    expect(folder, r"neither model\.safetensors nor model\.safetensors\.index\.json")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "m.pth"])
def test_pickles_are_never_read(file: str, folder: Path) -> None:
    (folder / file).write_bytes(b"\x80\x02")
    expect(folder, "pickles, which Octavo never reads; convert", UnsupportedModelError)


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    expect(sharded, r"model-00002-of-00002\.safetensors: is missing")


def test_an_index_that_contradicts_its_shards(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    weight_map: dict[str, Any] = json.loads(index.read_text())["weight_map"]
    weight_map["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    expect(sharded, "has no tensor 'ghost'")


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "..", "", "a/b", 7])
def test_an_index_cannot_point_elsewhere(file: Any, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": file}}))
    expect(folder, "is no name of a file")
    for text in ('{"weight_map": []}', "{}", '{"weight_map": {}}'):
        index.write_text(text)
        expect(folder, "has no weight_map")


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(**changes: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes
    return file_of({"w": entry}, bytes(16))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated: shorter"),
        (b"\0" * 7, "truncated: shorter"),
        (struct.pack("<Q", 2**63) + b"{}", "impossible length"),
        (struct.pack("<Q", 90_000_000) + b"{}", "truncated: the header ends"),
        (file_of(b"\xff\xff"), "not valid JSON"),
        (file_of([]), "not a JSON object"),
        (file_of(b"[" * 50_000), "not valid JSON"),
        (file_of({"w": 7}), "malformed"),
        (file_of({"w": {}}), "malformed"),
        (one(shape=None), "malformed"),
        (one(shape=[-2, -2]), "malformed"),
        (one(shape=[2.0, 2]), "malformed"),
        (one(shape=[True, 4]), "malformed"),
        (one(data_offsets=[0]), "malformed"),
        (one(data_offsets=[0, 2**80]), "malformed"),
        (one(shape=[2**40, 2**40]), "cannot take 16 bytes"),
        (one(shape=[3, 2]), "cannot take 16 bytes"),
        (one(data_offsets=[16, 0]), "cannot take -16 bytes"),
        (one(data_offsets=[4, 20]), "starts at byte"),
        (one()[:-1], "truncated: its tensors end"),
        (one() + b"!", "holds 1 bytes beyond"),
        (one(shape=[2**50, 0], data_offsets=[0, 0]), "makes no sense"),
        (
            file_of(
                {
                    "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                    "w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
                },
                bytes(12),
            ),
            "starts at byte",
        ),
    ],
)
def test_damaged_files(data: bytes, message: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(data)
    expect(folder, message)


def test_types_that_torch_does_not_have(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(one(dtype="F4"))
    expect(folder, "type 'F4', which is not supported", UnsupportedModelError)
    (folder / "model.safetensors").write_bytes(one(dtype=[]))
    expect(folder, "not supported", UnsupportedModelError)


def test_truncated_anywhere(single: Path) -> None:
    file = single / "model.safetensors"
    data = file.read_bytes()
    for cut in range(0, len(data), 11):
        file.write_bytes(data[:cut])
        expect(single, "truncated|not valid JSON")


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bytes(single: Path, data: st.DataObject) -> None:
    file = single / "model.safetensors"
    original = file.read_bytes()
    content = bytearray(original)
    header_end = 8 + struct.unpack_from("<Q", original)[0]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        checkpoint = FolderCheckpoint(single)
    except (CheckpointError, UnsupportedModelError):
        return
    finally:
        file.write_bytes(original)
    for tensor in checkpoint.tensors():
        assert tensor.load(torch.float32).shape == tensor.shape
    checkpoint.close()
