"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), halves rotated as in GPT-NeoX.

Scalings: none, linear (position interpolation, arXiv:2306.15595) and llama3 (by wavelength, as
published with Llama 3.1).
"""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from octavo.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.layers.batch import ForwardBatch

FIRST_ROWS = 512

CHUNK_ELEMENTS = 1 << 14
"""Angles that a CPU computes at a time: in its cache, and by torch's calling thread alone, which
need not wait for the others of its pool to wake up.
"""

Rope = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of a batch's positions, [t, 1, head_dim / 2] each."""


class Rotary(nn.Module):
    """Tables of cosines and sines, float32, one row per position.

    Args:
        head_dim: rotated dimensions, even.
        max_len: rows of the tables.
        theta: base of the frequencies.
        scaling: `rope_scaling` or `rope_parameters` of a Hugging Face config, or None.

    Raises:
        UnsupportedModelError: a scaling of another kind.
    """

    def __init__(
        self, head_dim: int, max_len: int, theta: float, scaling: Mapping[str, Any] | None
    ) -> None:
        super().__init__()
        self.head_dim, self.max_len = head_dim, max_len
        self.inv_freq = inverse_frequencies(head_dim, theta, scaling)
        self._table: torch.Tensor | None = None
        self._num_rows = 0

    def divide_frequencies(self, factors: torch.Tensor) -> None:
        """Apply per-frequency factors that a checkpoint brings (GGUF's `rope_freqs`).

        Before anything asked for the table.
        """
        assert self._table is None
        self.inv_freq = self.inv_freq / factors.to(self.inv_freq)

    def table(self, device: torch.device) -> torch.Tensor:
        """[max_len, head_dim] float32 on `device`: cosines of each position, then sines.

        Made by the first call, which must not be captured in a CUDA graph, and kept.
        """
        table = self.open_table(device)
        self.extend(self.max_len)
        return table

    def open_table(self, device: torch.device) -> torch.Tensor:
        """The same table, of which only the rows that `extend` was asked for are filled in.

        On a CPU the others take no memory yet: a long context's whole table is tens of megabytes
        and as many milliseconds.
        """
        if self._table is None or self._table.device != device:
            shape = (self.max_len, self.head_dim)
            if device.type == "cpu":
                memory = mmap.mmap(-1, max(4 * self.max_len * self.head_dim, 1))
                flat = torch.frombuffer(memory, dtype=torch.float32, count=math.prod(shape))
                self._table = flat.view(shape)
            else:
                self._table = torch.empty(shape, dtype=torch.float32, device=device)
            self._num_rows = 0
        return self._table

    def extend(self, num_positions: int) -> None:
        """Fill in the rows of the first `num_positions` positions, and more at once, if there is a
        table.
        """
        table = self._table
        if table is None or num_positions <= self._num_rows:
            return
        inv_freq, half = self.inv_freq.to(table.device), self.head_dim // 2
        end = min(max(num_positions, 2 * self._num_rows, FIRST_ROWS), self.max_len)
        step = max(CHUNK_ELEMENTS // half, 1) if table.device.type == "cpu" else self.max_len
        for start in range(self._num_rows, end, step):
            stop = min(start + step, end)
            steps = torch.arange(start, stop, dtype=torch.float32, device=table.device)
            angles = torch.outer(steps, inv_freq)
            table[start:stop, :half] = angles.cos()
            table[start:stop, half:] = angles.sin()
        self._num_rows = end

    def forward(self, batch: ForwardBatch) -> Rope | None:
        """What layers of this batch rotate by; None if its attention rotates by the table."""
        if batch.backend.fuses_rotary:
            return None
        table = self.open_table(batch.positions.device)
        if table.device.type == "cpu":
            self.extend(int(batch.positions.max()) + 1)
        else:
            self.extend(self.max_len)  # where to look at a position would wait for the device
        rows = table.index_select(0, batch.positions).unsqueeze(1)
        cos, sin = rows.chunk(2, dim=-1)
        return cos, sin


def rotate(x_thd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate heads by their positions' angles; float32 inside, x's dtype outside."""
    first, second = x_thd.float().chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x_thd.dtype)


def inverse_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None
) -> torch.Tensor:
    """[head_dim / 2] float32 on the CPU, after scaling."""
    # Not on the default device: powers would differ from device to device, and on `meta` each of
    # these operators would first import torch's own implementation of it in Python.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    inv_freq = 1.0 / (theta**exponents)
    scaling = scaling or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return inv_freq
    if kind == "linear":
        return inv_freq / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(inv_freq, scaling)
    raise UnsupportedModelError(
        f"rope scaling {kind!r} is not supported (default, linear and llama3 are)"
    )


def _llama3(inv_freq: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    """Keep short wavelengths, divide long ones by `factor`, and blend between."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    context = float(scaling["original_max_position_embeddings"])
    wavelen = 2 * math.pi / inv_freq
    smooth = (context / wavelen - low) / (high - low)
    blended = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    scaled = torch.where(wavelen > context / low, inv_freq / factor, inv_freq)
    is_between = (wavelen <= context / low) & (wavelen >= context / high)
    return torch.where(is_between, blended, scaled)
