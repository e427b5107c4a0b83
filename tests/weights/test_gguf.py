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
