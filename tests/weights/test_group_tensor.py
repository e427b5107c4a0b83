"""Folders with integers in groups: what comes out of them, and what damaged ones are told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from octavo.errors import CheckpointError, StartupError, UnsupportedModelError
from octavo.weights.gguf_blocks import dequantize
from octavo.weights.group_tensor import GroupTensor
from octavo.weights.open import open_checkpoint
from octavo.weights.safetensors_folder import FolderCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Arrays = dict[str, np.ndarray]

LAYER = "model.layers.0.mlp.up_proj"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}


def group(form: str, bits: int, **weights: Any) -> dict[str, Any]:
    own = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int"} | weights}
    return {
        "quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": own}
    }  # fmt: skip


PACKED = group("pack-quantized", 4, strategy="group", group_size=32)
PLAIN = group("int-quantized", 8, strategy="channel")
# By method: configuration, and tensors of a layer of 16 rows and 64 columns in two groups of 32
# (but one of PLAIN's).
WORDS = np.full((8, 16), 0x76543210, np.int32)
TENSORS: dict[str, tuple[dict[str, Any], Arrays]] = {
    "gptq": (GPTQ, {
        "qweight": WORDS, "qzeros": np.full((2, 2), 0x77777777, np.int32),
        "scales": np.full((2, 16), 0.5, np.float16), "g_idx": np.repeat([0, 1], 32).astype("i4"),
    }),
    "awq": (AWQ, {
        "qweight": np.full((64, 2), 0x76543210, np.int32),
        "qzeros": np.full((2, 2), 0x07777777, np.int32),
        "scales": np.full((2, 16), 0.5, np.float16),
    }),
    "packed": (PACKED, {
        "weight_packed": WORDS.T.copy(), "weight_scale": np.full((16, 2), 0.5, np.float32),
        "weight_shape": np.array([16, 64]),
        "weight_zero_point": np.full((2, 2), 0x77777777, np.int32),
    }),
    "plain": (PLAIN, {
        "weight": np.full((16, 64), -128, np.int8),
        "weight_scale": np.full((16, 1), 0.5, np.float32),
    }),
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any], Arrays], Path]:
    def write(config: dict[str, Any], tensors: Arrays) -> Path:
        settings = {"architectures": ["LlamaForCausalLM"], "quantization_config": config}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        own = {f"{LAYER}.{kind}": np.ascontiguousarray(array) for kind, array in tensors.items()}
        own["model.norm.weight"] = np.ones(3, np.float32)
        save_file(own, tmp_path / "model.safetensors")
        return tmp_path

    return write


def only(path: Path) -> GroupTensor:
    checkpoint = open_checkpoint(path)
    assert checkpoint.has_blocks
    tensors = list(checkpoint.tensors())
    (tensor,) = (t for t in tensors if t.name != "model.norm.weight")
    assert len(tensors) == 2
    assert checkpoint.num_bytes == sum(t.num_bytes for t in tensors)
    assert isinstance(tensor, GroupTensor)
    return tensor


@pytest.mark.parametrize(
    ("method", "block_format", "row"),
    [
        # v1 stores zero points less 1
        ("gptq", "Q4_0", [(i % 8 - 8) * 0.5 for i in range(64)]),
        ("awq", "Q4_1", None),
        ("packed", "Q4_1", [(i % 8 - 7) * 0.5 for i in range(64)]),
        ("plain", "Q8_0", [-64.0] * 64),
    ],
)
def test_one_tensor_by_the_weights_name(
    method: str, block_format: str, row: list[float] | None, write: Callable[..., Path]
) -> None:
    tensor = only(write(*TENSORS[method]))
    assert tensor.name == f"{LAYER}.weight"
    assert tensor.shape == (16, 64)
    assert (tensor.dtype, tensor.why_not_blocks) == (block_format, None)
    weight = tensor.load(torch.float32)
    if row is None:
        codes = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7] * 2)
        zeros = torch.tensor([7] * 8 * 2)
        zeros[[7, 15]] = 0  # the highest bits of a word are row 7
        assert torch.equal(weight, ((codes - zeros) * 0.5)[:, None].expand(16, 64))
    else:
        assert torch.equal(weight, torch.tensor(row).expand(16, 64))
    assert torch.equal(tensor.load(torch.bfloat16), weight.bfloat16())
    decoded = dequantize(tensor.packed(), tensor.dtype).reshape(16, 64)
    assert np.array_equal(decoded, weight.numpy())


@pytest.mark.parametrize("cols", [40, 72, 100])
def test_rows_of_any_length_are_decoded(cols: int, write: Callable[..., Path]) -> None:
    config = group("pack-quantized", 4, strategy="channel")
    words = np.full((3, -(-cols // 8)), 0x76543210, np.int32)
    scale = np.array([[1], [2], [4]], np.float32)
    shape = np.array([3, cols])
    tensor = only(
        write(config, {"weight_packed": words, "weight_scale": scale, "weight_shape": shape})
    )
    assert (tensor.dtype, tensor.why_not_blocks) == ("int4", f"rows of {cols} columns")
    want = (torch.arange(cols) % 8 - 8) * torch.tensor(scale)
    assert torch.equal(tensor.load(torch.float32), want)


def test_groups_of_columns_in_any_order(write: Callable[..., Path]) -> None:
    config, tensors = TENSORS["gptq"]
    scales = np.repeat(np.array([[1], [2]], np.float16), 16, 1)
    swapped = np.repeat([1, 0], 32).astype("i4")
    tensor = only(write(config, tensors | {"scales": scales, "g_idx": swapped}))
    assert tensor.dtype == "Q4_0"  # a group still begins and ends with a block
    decoded = dequantize(tensor.packed(), tensor.dtype).reshape(16, 64)
    want = np.array([(i % 8 - 8) * (2 if i < 32 else 1) for i in range(64)])
    assert (decoded == want).all()
    mixed = np.arange(64, dtype="i4") % 2
    tensor = only(write(config, tensors | {"scales": scales, "g_idx": mixed}))
    assert tensor.dtype == "int4"
    want = np.array([(i % 8 - 8) * (1 + i % 2) for i in range(64)])
    assert (tensor.load(torch.float32).numpy() == want).all()


@pytest.mark.parametrize("bad", [-1, 2, 2**31 - 1, -(2**31)])
def test_a_group_that_is_not_there(bad: int, write: Callable[..., Path]) -> None:
    config, tensors = TENSORS["gptq"]
    g_idx = tensors["g_idx"].copy()
    g_idx[63] = bad
    tensor = only(write(config, tensors | {"g_idx": g_idx}))
    for use in (lambda: tensor.dtype, lambda: tensor.load(torch.float32)):
        with pytest.raises(CheckpointError, match=rf"up_proj: g_idx holds .*{bad}.* there are 2"):
            use()


F16, F32, I32 = np.float16, np.float32, np.int32
DAMAGED: list[tuple[str, str, np.ndarray | None, str]] = [
    ("gptq", "scales", None, "has no scales"),
    ("gptq", "qzeros", None, "has no qzeros"),
    ("gptq", "scales", np.zeros((2, 15), F16), r"scales has shape \(2, 15\), .* for \(2, 16\)"),
    ("gptq", "scales", np.zeros((3, 16), F16), r"scales has shape \(3, 16\)"),
    ("gptq", "scales", np.zeros((2, 16), I32), "scales is int32, not float16 or bfloat16 or"),
    ("gptq", "qzeros", np.zeros((2, 1), I32), r"qzeros has shape \(2, 1\), .* asks for \(2, 2\)"),
    ("gptq", "g_idx", np.zeros(63, I32), r"g_idx has shape \(63,\), .* asks for \(64,\)"),
    ("gptq", "g_idx", np.zeros(0, I32), r"g_idx has shape \(0,\)"),
    ("gptq", "g_idx", np.zeros(64, F32), "g_idx is float32"),
    ("gptq", "qweight", np.zeros((0, 16), I32), r"its codes have shape \(0, 16\)"),
    ("gptq", "qweight", np.zeros((8, 0), I32), r"its codes have shape \(8, 0\)"),
    ("gptq", "qweight", np.zeros(8, I32), r"its codes have shape \(8,\)"),
    ("gptq", "qweight", np.zeros((8, 16), F16), "qweight is float16, not int32"),
    ("gptq", "qweight", np.zeros((12, 16), I32), "scales has shape"),
    ("awq", "scales", None, "has no scales"),
    ("awq", "qzeros", np.zeros((2, 16), I32), r"qzeros has shape \(2, 16\)"),
    ("awq", "qweight", np.zeros((64, 3), I32), "scales has shape"),
    ("packed", "weight_scale", None, "has no weight_scale"),
    ("packed", "weight_shape", None, "has no weight_shape"),
    ("packed", "weight_shape", np.array([16]), r"weight_shape has shape \(1,\)"),
    ("packed", "weight_shape", np.array([16, 65]), r"weight_shape is \(16, 65\), which codes"),
    ("packed", "weight_shape", np.array([16, -64]), r"weight_shape is \(16, -64\)"),
    ("packed", "weight_shape", np.array([2**62, 64]), "weight_shape is"),
    ("packed", "weight_zero_point", np.zeros((16, 2), I32), "weight_zero_point has shape"),
    ("packed", "weight_zero_point", np.zeros((2, 2), np.int8), "weight_zero_point has shape"),
    ("packed", "weight_zero_point", np.zeros((2, 2), F32), "weight_zero_point is float32"),
    ("packed", "weight_scale", np.zeros((16, 1), F32), r"weight_scale has shape \(16, 1\)"),
    ("plain", "weight_scale", None, "has no weight_scale"),
    ("plain", "weight_scale", np.zeros((15, 1), F32), r"weight_scale has shape \(15, 1\)"),
    ("plain", "weight", np.zeros((16, 64, 1), np.int8), r"its codes have shape \(16, 64, 1\)"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "kind", "array", "message"), DAMAGED)
def test_damaged_layers_are_refused_when_the_folder_is_opened(
    method: str, kind: str, array: np.ndarray | None, message: str, write: Callable[..., Path]
) -> None:
    config, tensors = TENSORS[method]
    tensors = {name: value for name, value in tensors.items() if name != kind}
    if array is not None:
        tensors[kind] = array
    with pytest.raises(CheckpointError, match=rf"up_proj: {message}"):
        open_checkpoint(write(config, tensors))


def test_a_file_that_shrinks_is_an_error(write: Callable[..., Path]) -> None:
    path = write(*TENSORS["packed"])
    tensor = only(path)
    with (path / "model.safetensors").open("rb+") as file:
        file.truncate((path / "model.safetensors").stat().st_size - 600)
    for use in (tensor.packed, lambda: tensor.load(torch.float32)):
        with pytest.raises(CheckpointError, match="truncated"):
            use()


def test_a_refusal_names_the_file(write: Callable[..., Path]) -> None:
    path = write({"quant_method": "bitsandbytes"}, {})
    with pytest.raises(
        UnsupportedModelError, match=r"config\.json: quantization_config\.quant_met"
    ):
        open_checkpoint(path)
    assert list(FolderCheckpoint(path, has_weights=False).tensors()) == []


@given(data=st.data(), method=st.sampled_from([*TENSORS]))
@settings(
    deadline=None, max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_tensors_of_any_shape_and_content_are_read_or_refused(
    data: st.DataObject, method: str, write: Callable[..., Path]
) -> None:
    """And nothing else: every index stays within its array."""
    config, tensors = TENSORS[method]
    changed = dict(tensors)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    for kind in data.draw(st.sets(st.sampled_from([*tensors]), max_size=2)):
        old = tensors[kind]
        shape = tuple(
            data.draw(st.sampled_from([extent, 0, 1, extent - 1, 2 * extent]))
            for extent in old.shape
        )
        raw = rng.integers(0, 256, int(np.prod(shape)) * old.dtype.itemsize, np.uint8)
        changed[kind] = raw.view(old.dtype).reshape(shape)
    path = write(config, changed)
    try:
        (tensor,) = (t for t in open_checkpoint(path).tensors() if t.name.startswith(LAYER))
        assert isinstance(tensor, GroupTensor)
        weight = tensor.load(torch.float32)
        if tensor.why_not_blocks is None:
            decoded = torch.from_numpy(dequantize(tensor.packed(), tensor.dtype)).view(weight.shape)
            torch.testing.assert_close(
                decoded, weight, rtol=2**-10, atol=2**-10 * weight.abs().max()
            )
    except StartupError:
        return
    assert weight.shape == tensor.shape
