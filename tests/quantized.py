"""Tiny checkpoints with integers in groups, and the same ones with decoded weights.

Codes, scales and the compressed-tensors layouts come from that package's own compressors; words of
GPTQ and AWQ are packed here as their formats are published, and decoded by other means.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
)
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tensors = dict[str, torch.Tensor]
    Layer = tuple[Tensors, torch.Tensor]
    """A layer's tensors by what they are called behind its name, and its decoded weight."""

PACKED, PLAIN = "pack-quantized", "int-quantized"


def write_folder(
    source: Path,
    target: Path,
    config: dict[str, Any],
    quantize_layer: Callable[[torch.Tensor], Layer],
    *,
    skip: tuple[str, ...] = (),
) -> Path:
    """A copy of `source` with quantized projections; its `decoded` folder has the same, decoded.

    Args:
        source: a folder that transformers wrote.
        target: a new folder.
        config: `quantization_config`.
        quantize_layer: of one weight.
        skip: parts of names of layers that stay as they are.
    """
    decoded = target / "decoded"
    shutil.copytree(source, decoded)
    shutil.copytree(source, target, dirs_exist_ok=True)
    tensors, plain = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        tensors[name] = plain[name] = tensor
        if name.endswith("_proj.weight") and not any(part in name for part in skip):
            del tensors[name]
            parts, plain[name] = quantize_layer(tensor)
            tensors |= {f"{layer}.{kind}": part.contiguous() for kind, part in parts.items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    save_file(plain, decoded / "model.safetensors", {"format": "pt"})
    settings = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(settings | {"quantization_config": config}))
    return target


def params(weight: torch.Tensor, args: QuantizationArgs) -> Tensors:
    """Weight, scales and zero points (rows, groups) by the package's own rule."""
    size = args.group_size if args.strategy == "group" else weight.shape[1]
    groups = weight.unflatten(1, (-1, size))
    if args.strategy == "tensor":
        groups = weight.reshape(1, 1, -1)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    return {
        "weight": weight,
        "weight_scale": scale if args.strategy != "tensor" else scale.reshape(1),
        "weight_zero_point": zero if args.strategy != "tensor" else zero.reshape(1),
    }


def compressed(form: str, weights: QuantizationArgs, **scheme: Any) -> tuple[Any, Any]:
    """(quantization_config, quantize_layer) of compressed-tensors."""
    own = QuantizationScheme(targets=["Linear"], weights=weights, format=form, **scheme)
    config = QuantizationConfig(
        config_groups={"group_0": own},
        format=form,
        quantization_status="compressed",
        ignore=["lm_head", "re:.*skipped"],
    )
    compressor: Any = BaseCompressor.get_value_from_registry(form)

    def quantize_layer(weight: torch.Tensor) -> Layer:
        stored = compressor.compress(params(weight, weights), own)
        return stored, compressor.decompress(stored, own)["weight"]

    return json.loads(config.model_dump_json()), quantize_layer


def codes_of(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, ...]:
    """Unsigned codes (n, k), scales and unsigned zero points (n, g), float16 scales."""
    made = params(weight, args)
    scale, zero = made["weight_scale"].half().float(), made["weight_zero_point"]
    codes = quantize(weight, scale, zero, args, dtype=torch.int8).int()
    half = 2 ** (args.num_bits - 1)
    return codes + half, scale, zero.int() + half


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(m, w * 32 / bits) codes to (m, w) words, the first code in the lowest bits."""
    parts = codes.long().unflatten(1, (-1, 32 // bits))
    shifts = torch.arange(0, 32, bits)
    return (parts << shifts).sum(-1).to(torch.uint32).view(torch.int32)


def gptq(
    bits: int, size: int, *, sym: bool, is_v2: bool = False, order: bool = False
) -> tuple[Any, Any]:
    """(quantization_config, quantize_layer); `order` deals the columns out to groups at random."""
    config = {
        "quant_method": "gptq", "bits": bits, "group_size": size, "sym": sym, "desc_act": order,
        "damp_percent": 0.01, "static_groups": False, "true_sequential": True,
    }  # fmt: skip
    if is_v2:
        config["checkpoint_format"] = "gptq_v2"
    strategy = "group" if size > 0 else "channel"
    args = QuantizationArgs(
        num_bits=bits, symmetric=sym, strategy=strategy, group_size=size if size > 0 else None
    )

    def quantize_layer(weight: torch.Tensor) -> Layer:
        num_rows, num_cols = weight.shape
        generator = torch.Generator().manual_seed(num_rows)
        perm = torch.randperm(num_cols, generator=generator) if order else torch.arange(num_cols)
        sorted_codes, scale, zero = codes_of(weight[:, perm], args)
        g_idx = torch.empty(num_cols, dtype=torch.int32)
        g_idx[perm] = torch.arange(num_cols, dtype=torch.int32) // (size if size > 0 else num_cols)
        codes = torch.empty_like(sorted_codes)
        codes[:, perm] = sorted_codes
        stored = {
            "qweight": words(codes, bits).T,
            "qzeros": words((zero if is_v2 else (zero - 1) % 2**bits).T, bits),
            "scales": scale.T.half(),
            "g_idx": g_idx,
            "bias": torch.zeros(num_rows, dtype=torch.float16),
        }
        groups = g_idx.long()
        return stored, (codes - zero[:, groups]) * scale[:, groups]

    return config, quantize_layer


def awq(size: int) -> tuple[Any, Any]:
    """(quantization_config, quantize_layer); decoded by way of compressed-tensors' converter."""
    config = {
        "quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True,
        "version": "gemm", "modules_to_not_convert": None,
    }  # fmt: skip
    args = QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=size)
    own = QuantizationScheme(targets=["Linear"], weights=args)
    converter = AutoAWQConverter.from_autoawq_config(config)
    compressor: Any = BaseCompressor.get_value_from_registry(PACKED)

    def interleaved(codes: torch.Tensor) -> torch.Tensor:
        eights = codes.unflatten(1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return words(eights.flatten(1), 4)

    def quantize_layer(weight: torch.Tensor) -> Layer:
        codes, scale, zero = codes_of(weight, args)
        stored = {
            "qweight": interleaved(codes.T),
            "qzeros": interleaved(zero.T),
            "scales": scale.T.half(),
        }
        other = converter.process({f"x.{kind}": part for kind, part in stored.items()})
        state = {name.removeprefix("x."): tensor for name, tensor in other.items()}
        state["weight_scale"] = state["weight_scale"].float()
        return stored, compressor.decompress(state, own)["weight"]

    return config, quantize_layer
