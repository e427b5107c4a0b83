"""Damaged GGUF files through the reader and the native kernels: refused, or read within bounds.

FUZZ_EXAMPLES is how many files; FUZZ_LIBRARY a folder with another build of the kernels, such as
the one with an address sanitizer that `scripts/fuzz_gguf.py` makes.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.kernels import cpu
from octavo.kernels.cpu import matmul
from octavo.weights.block_formats import FORMATS_BY_NAME
from octavo.weights.gguf import GGUFCheckpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from octavo.weights.gguf import GGUFTensor

NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
MOST_ROWS = 512  # of a product; a damaged shape may have 2^20 of one block


@pytest.fixture(scope="module", autouse=True)
def _library() -> Iterator[None]:
    folder = os.environ.get("FUZZ_LIBRARY")
    with pytest.MonkeyPatch.context() as patch:
        if folder is not None:
            patch.setattr(cpu, "__path__", [folder])
            cpu.forget()
            assert cpu.why_not() is None
        if cpu.why_not() is not None:
            pytest.skip(str(cpu.why_not()))
        yield
    cpu.forget()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with a matrix of each format that the kernels multiply."""
    path = tmp_path_factory.mktemp("fuzz") / "sound.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("t.number", 7)
    writer.add_token_list(["<s>", "</s>", "a"])
    rng = np.random.default_rng(0)
    for name in matmul.TYPES:
        kind = gguf.GGMLQuantizationType[name]
        blocks = rng.integers(0, 60, (5, 2 * FORMATS_BY_NAME[name].block_bytes), dtype=np.uint8)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@st.composite
def damages(draw: st.DrawFn, size: int) -> list[tuple[int, bytes]]:
    """(place, bytes to be written there), behind where the damage begins."""
    words = st.sampled_from([0, 1, 2, 31, 32, 255, 256, 512, 2**31, 2**32, 2**40, 2**63, 2**64 - 1])
    written = st.one_of(
        st.binary(min_size=1, max_size=2),
        words.map(lambda n: struct.pack("<Q", n)),
        st.integers(0, 40).map(lambda n: struct.pack("<I", n)),
    )
    return draw(st.lists(st.tuples(st.integers(0, size - 1), written), min_size=1, max_size=4))


def use(tensor: GGUFTensor, order: torch.Tensor | None) -> None:
    """Everything that loading and a step do with it. The copy ends where the file's bytes do, so
    that a sanitizer sees a byte too far.
    """
    stored = np.array(tensor.packed())
    assert stored.nbytes == tensor.num_bytes
    if len(tensor.shape) != 2 or tensor.dtype not in matmul.TYPES:
        return
    rows, cols = min(tensor.shape[0], MOST_ROWS), tensor.shape[1]
    size = matmul.packed_bytes(tensor.dtype, rows, cols)
    if size == 0:
        assert rows == 0 or cols == 0
        return
    packed = matmul.allocate_packed(size)
    if order is not None and len(order) != rows:
        order = torch.arange(rows).flip(0)
    stored = np.ascontiguousarray(stored[:rows])
    matmul.pack(packed, stored, tensor.dtype, (rows, cols), order, is_last=True)
    for num_tokens in (1, 7):
        y = matmul.linear(torch.ones(num_tokens, cols), packed, rows, None)
        assert y.shape == (num_tokens, rows)
    decoded = matmul.decode_rows(packed, torch.tensor([0, rows - 1]), cols, torch.float32)
    assert decoded.shape == (2, cols)
    with pytest.raises(IndexError):
        matmul.decode_rows(packed, torch.tensor([rows]), cols, torch.float32)


@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_are_refused_or_read_within_bounds(
    sound: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    table = sound.index(b"Q4_0.weight")
    begin = data.draw(st.sampled_from([0, table, table, table]), "from")
    end = data.draw(st.sampled_from([table + 8 * 48, len(sound)]), "to")
    content = bytearray(sound)
    for place, written in data.draw(damages(end - begin), "damage"):
        content[begin + place : begin + place + len(written)] = written
    path = tmp_path / "damaged.gguf"
    # Most are whole: a shorter one is refused at once.
    lost = data.draw(st.sampled_from([0, 0, 0, 1, 40, 2000]), "lost")
    path.write_bytes(content[: len(content) - lost])
    reverse = torch.arange(5).flip(0)
    try:
        checkpoint = GGUFCheckpoint(path)
    except (CheckpointError, UnsupportedModelError):
        return
    for index, tensor in enumerate(checkpoint.tensors()):
        use(tensor, reverse if index % 2 else None)
    checkpoint.close()


def test_the_sound_file_is_read_whole(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sound.gguf"
    path.write_bytes(sound)
    checkpoint = GGUFCheckpoint(path)
    tensors = list(checkpoint.tensors())
    assert sorted(tensor.dtype for tensor in tensors) == sorted(matmul.TYPES)
    for tensor in tensors:
        use(tensor, None)
    checkpoint.close()
