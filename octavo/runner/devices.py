"""Devices that Octavo knows by name, and what bounds a step on each.

Pure values: nothing here imports torch. Where a figure was measured its comment says so; the others
are the makers' data sheets with the same efficiencies.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

WeightDType = Literal["bf16", "fp8"]


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds a step on one device. Rates are what kernels reach, not what a sheet promises.

    Attributes:
        memory_gb: bytes of memory, in 1e9.
        read_gb_s: reading device memory.
        gemm_read_gb_s: reading weights in a matmul of few rows.
        gemm_tflops: dense matmul rate by dtype of the weights.
        attention_tflops: prefill attention.
        attention_read_gb_s: reading KV in decode attention.
        l2_mb, l2_gb_s: last cache: its size, and reading KV that several sequences share from it.
        gemm_us: latency of one matmul kernel in a graph.
        layer_us: all other small kernels of a layer together (norms, rotary, KV write, activation).
        sequence_layer_us: of attention, per sequence and layer.
        graph_max_tokens: steps of more tokens are launched kernel by kernel.
    """

    name: str
    memory_gb: float
    read_gb_s: float
    gemm_read_gb_s: float
    gemm_tflops: dict[WeightDType, float]
    attention_tflops: float
    attention_read_gb_s: float
    l2_mb: float
    l2_gb_s: float
    gemm_us: float = 3.0
    layer_us: float = 32.0
    sequence_layer_us: float = 0.1
    graph_max_tokens: int = 512


def _scaled(name: str, *sheet: float, **own: Any) -> Device:
    """A device by its data sheet (GB, GB/s, dense bf16 and fp8 TFLOP/s, MB of L2), with the share
    of them that the H100 below was measured to reach.
    """
    memory, read, bf16, fp8, l2 = sheet
    return Device(
        name=name,
        memory_gb=memory,
        read_gb_s=0.896 * read,
        gemm_read_gb_s=0.854 * read,
        gemm_tflops={"bf16": 0.67 * bf16, "fp8": 0.585 * fp8},
        attention_tflops=0.607 * bf16,
        attention_read_gb_s=0.76 * read,
        l2_mb=l2,
        l2_gb_s=1.65 * read,
        **own,
    )


# H100 SXM, measured: read 3003 GB/s; bf16 matmul 756 TFLOP/s for one cube, 662 over a model's
# layers at 4096 rows; fp8 1321 for a cube, the same share of it over layers; attention 600 TFLOP/s.
# From the matmuls of a model at 1..512 rows: gemm_read_gb_s and gemm_us. From decoding at 1..256
# sequences: layer_us, sequence_layer_us, attention_read_gb_s. From a shared prefix: l2_gb_s.
DEVICES = {
    device.name: device
    for device in (
        Device(
            name="h100",
            memory_gb=85.0,
            read_gb_s=3003,
            gemm_read_gb_s=2860,
            gemm_tflops={"bf16": 662, "fp8": 1157},
            attention_tflops=600,
            attention_read_gb_s=2550,
            l2_mb=50,
            l2_gb_s=5500,
        ),
        _scaled("h200", 150.0, 4800, 989, 1979, 50),
        _scaled("a100", 85.0, 2039, 312, 312, 40),  # no fp8 units: fp8 weights at the bf16 rate
        _scaled("l4", 24.0, 300, 121, 242, 48),
        _scaled("cpu", 64.0, 50, 1.5, 1.5, 32, gemm_us=5.0, layer_us=60.0, sequence_layer_us=2.0),
    )
}


def find_device(name: str) -> Device | None:
    """The entry of a GPU by what its driver calls it, such as `NVIDIA H100 80GB HBM3`."""
    words = name.lower().replace("-", " ").split()
    return next((device for key, device in DEVICES.items() if key in words), None)
