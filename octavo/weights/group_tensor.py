"""A layer's weight that a Hugging Face folder stores as integers in groups, as one tensor.

Puts together what one layer has in several tensors, and checks their shapes against each other
before anything is read. Knows files by `FolderTensor` only, and no models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from octavo.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from octavo.weights.group_codes import Codes, Words
    from octavo.weights.group_config import GroupConfig, GroupScheme, Layout
    from octavo.weights.safetensors_folder import FolderTensor

CHUNK_ELEMENTS = 1 << 20
"""Weights that are unpacked at once."""


class _Names(NamedTuple):
    """What a layout calls a layer's tensors, behind the layer's name."""

    codes: str
    scales: str
    zeros: str
    groups: str | None = None
    shape: str | None = None


_GPTQ = _Names("qweight", "scales", "qzeros", "g_idx")
_NAMES: dict[Layout, _Names] = {
    "gptq": _GPTQ,
    "awq": _GPTQ._replace(groups=None),
    "packed": _Names(
        "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"
    ),
    "plain": _Names("weight", "weight_scale", "weight_zero_point"),
}
_ZERO_TYPES: dict[Layout, tuple[str, ...]] = {
    "gptq": ("int32",),
    "awq": ("int32",),
    "packed": ("int32", "int8"),
    "plain": ("int8",),
}
_FLOATS = ("float16", "bfloat16", "float32")


def join_groups(
    path: Path, config: GroupConfig, tensors: Iterable[FolderTensor]
) -> list[FolderTensor | GroupTensor]:
    """The tensors, with those of each quantized layer as one, in the place of its codes.

    Raises:
        CheckpointError: tensors of a layer are missing, or their shapes contradict each other.
        UnsupportedModelError: the configuration does not say how a layer is stored.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    joined: dict[str, GroupTensor] = {}
    taken: set[str] = set()
    for layout in sorted(config.layouts):
        names = _NAMES[layout]
        for name, tensor in by_name.items():
            layer, _, kind = name.rpartition(".")
            if kind != names.codes or (layout == "plain" and tensor.dtype != "int8"):
                continue
            scheme = config.scheme_of(layer)
            if scheme.layout != layout:
                continue
            parts = {k: by_name.get(f"{layer}.{v}") for k, v in names._asdict().items() if v}
            joined[name] = GroupTensor(f"{path}: {layer}", f"{layer}.weight", scheme, parts)
            taken.update(part.name for part in parts.values() if part is not None)
    return [
        joined.get(name, tensor)
        for name, tensor in by_name.items()
        if name in joined or name not in taken
    ]


class GroupTensor:
    """One weight (`BlockTensor`).

    Attributes:
        name: of the weight, were it not quantized.
        shape: (n, k), outputs and inputs.
        num_bytes: in the file, with scales and zero points.

    Args:
        where: for messages.
        name: see above.
        scheme: how it is stored.
        parts: its tensors by the fields of `_Names`; None: there is none.

    Raises:
        CheckpointError: tensors are missing, or their shapes contradict each other.
    """

    def __init__(
        self,
        where: str,
        name: str,
        scheme: GroupScheme,
        parts: Mapping[str, FolderTensor | None],
    ) -> None:
        self.name = name
        self._where = where
        self._scheme = scheme
        self._codes = self._part(parts, "codes", ("int8" if scheme.layout == "plain" else "int32",))
        self._scales = self._part(parts, "scales", _FLOATS)
        has_zeros = scheme.layout in ("gptq", "awq") or parts.get("zeros") is not None
        self._zeros = self._part(parts, "zeros", _ZERO_TYPES[scheme.layout]) if has_zeros else None
        has_groups = parts.get("groups") is not None
        self._groups = self._part(parts, "groups", ("int32", "int64")) if has_groups else None
        if scheme.layout == "packed":
            self._part(parts, "shape", ("int64", "int32"))
        self._num_rows, self._num_cols = self._read_shape(parts.get("shape"))
        self.shape: tuple[int, ...] = (self._num_rows, self._num_cols)
        self._num_groups = self._check_shapes()
        self.num_bytes = sum(part.num_bytes for part in parts.values() if part is not None)
        self._settled: tuple[str, str | None] | None = None

    def __repr__(self) -> str:
        return f"GroupTensor({self.name!r}, shape={self.shape}, {self._scheme})"

    @property
    def dtype(self) -> str:
        """The block format that holds the weight; `int4` or `int8` where none does.

        Raises:
            CheckpointError: columns belong to groups that are not there.
        """
        return self._settle()[0]

    @property
    def why_not_blocks(self) -> str | None:
        """Why no block format holds the weight, in a few words; None: one does."""
        return self._settle()[1]

    def packed(self) -> NDArray[np.uint8]:
        """The weight's blocks, (n, bytes of a row); `dtype` must be a block format.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
        """
        import numpy as np

        from octavo.weights.block_formats import FORMATS_BY_NAME
        from octavo.weights.group_blocks import as_half, make_blocks, minima
        from octavo.weights.group_codes import block_groups

        blocks = block_groups(self._column_groups())
        assert blocks is not None
        scales, zeros = self._read_scales(), self._read_zeros()
        halves = as_half(scales)
        assert halves is not None
        mins = as_half(minima(scales, zeros)) if self.dtype == "Q4_1" else None
        row_bytes = FORMATS_BY_NAME[self.dtype].row_bytes(self._num_cols)
        out = np.empty((self._num_rows, row_bytes), np.uint8)
        for begin, end, codes in self._chunks():
            own = None if mins is None else mins[begin:end][:, blocks]
            make_blocks(self.dtype, codes, halves[begin:end][:, blocks], own, out[begin:end])
        return out

    def load(self, dtype: torch.dtype) -> torch.Tensor:
        """The decoded weight in `dtype`, owned by the caller; computed in float32.

        Raises:
            CheckpointError: columns belong to groups that are not there, or the file has become
                shorter since it was opened.
        """
        import numpy as np
        import torch

        groups = self._column_groups()
        scales, zeros = self._read_scales(), self._read_zeros()
        out = torch.empty(self.shape, dtype=dtype)
        for begin, end, codes in self._chunks():
            values = codes.astype(np.float32)
            values -= zeros[begin:end][:, groups]
            with np.errstate(over="ignore", invalid="ignore"):
                values *= scales[begin:end][:, groups]
            out[begin:end] = torch.from_numpy(values)
        return out

    def _chunks(self) -> Iterable[tuple[int, int, Codes]]:
        """(begin, end, codes) of runs of rows."""
        from octavo.weights.group_codes import read_codes

        num_rows, num_cols = self._num_rows, self._num_cols
        stored = _read(self._codes)
        step = max(CHUNK_ELEMENTS // num_cols // 8, 1) * 8
        for begin in range(0, num_rows, step):
            end = min(begin + step, num_rows)
            yield begin, end, read_codes(stored, self._scheme, begin, end, num_cols)

    def _settle(self) -> tuple[str, str | None]:
        """`dtype` and `why_not_blocks`; reads all but the codes, once."""
        if self._settled is None:
            from octavo.weights.group_blocks import pick_format
            from octavo.weights.group_codes import block_groups

            plain, size = f"int{self._scheme.bits}", self._scheme.group_size
            columns = self._column_groups()
            if self._num_cols % 32:
                self._settled = plain, f"rows of {self._num_cols} columns"
            elif self._num_groups > 1 and size % 32:
                self._settled = plain, f"groups of {size} columns"
            elif block_groups(columns) is None:
                self._settled = plain, "columns in the order of activations (desc_act)"
            else:
                scales, zeros = self._read_scales(), self._read_zeros()
                self._settled = pick_format(self._scheme.bits, scales, zeros)
        return self._settled

    def _read_scales(self) -> NDArray[np.float32]:
        """(n, g)."""
        import numpy as np

        scales = _read(self._scales).astype(np.float32)
        return self._by_rows(scales.T if self._scheme.layout in ("gptq", "awq") else scales)

    def _read_zeros(self) -> Codes:
        """(n, g)."""
        from octavo.weights.group_codes import read_zeros

        num_rows, scheme = self._num_rows, self._scheme
        if self._zeros is None or self._zeros.dtype != "int8":
            stored = None if self._zeros is None else _read(self._zeros)
            return read_zeros(stored, scheme, num_rows, self._num_groups)
        signed = self._by_rows(_read(self._zeros))
        return read_zeros(signed, scheme, num_rows, self._num_groups)

    def _by_rows(self, values: Words) -> Words:
        """(n, g), also of what is stored as (n) or as one number for all."""
        import numpy as np

        shape = (self._num_rows, self._num_groups)
        return np.broadcast_to(
            values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1), shape
        )

    def _column_groups(self) -> NDArray[np.int64]:
        """(k): each column's group, every one of them there."""
        import numpy as np

        num_cols, size = self._num_cols, self._scheme.group_size
        if self._groups is None:
            return np.arange(num_cols) // (size or num_cols)
        groups = _read(self._groups).astype(np.int64)
        if groups.min() < 0 or groups.max() >= self._num_groups:
            raise self._error(
                f"g_idx holds {groups.min()} to {groups.max()}, and there are "
                f"{self._num_groups} groups"
            )
        return groups

    def _part(
        self, parts: Mapping[str, FolderTensor | None], field: str, dtypes: tuple[str, ...]
    ) -> FolderTensor:
        """A tensor that must be there, of one of the types."""
        part = parts.get(field)
        name = getattr(_NAMES[self._scheme.layout], field)
        if part is None:
            raise self._error(f"has no {name}")
        if part.dtype not in dtypes:
            raise self._error(f"{name} is {part.dtype}, not {' or '.join(dtypes)}")
        return part

    def _read_shape(self, stored: FolderTensor | None) -> tuple[int, int]:
        """(n, k)."""
        codes, scheme = self._codes.shape, self._scheme
        if len(codes) != 2 or 0 in codes:
            raise self._error(f"its codes have shape {codes}")
        per_word = 32 // scheme.bits
        if scheme.layout == "gptq":
            return codes[1], codes[0] * per_word
        if scheme.layout == "awq":
            return codes[1] * per_word, codes[0]
        if stored is None:
            return codes[0], codes[1]
        if stored.shape != (2,):
            raise self._error(f"weight_shape has shape {stored.shape}, not (2,)")
        raw = bytearray(stored.num_bytes)
        stored.read_into(memoryview(raw), 0)
        half = len(raw) // 2  # without numpy, which opening a folder does not import
        num_rows, num_cols = (
            int.from_bytes(number, "little", signed=True) for number in (raw[:half], raw[half:])
        )
        if num_rows != codes[0] or num_cols < 1 or -(-num_cols // per_word) != codes[1]:
            raise self._error(
                f"weight_shape is {(num_rows, num_cols)}, which codes of shape {codes} are not"
            )
        return num_rows, num_cols

    def _check_shapes(self) -> int:
        """The number of groups.

        Raises:
            CheckpointError: a tensor has not the shape that the codes and the scheme ask for.
        """
        num_rows, num_cols, scheme = self._num_rows, self._num_cols, self._scheme
        size = scheme.group_size or num_cols
        num_groups = -(-num_cols // size)
        packed_rows = -(-num_rows * scheme.bits // 32)
        if scheme.layout in ("gptq", "awq"):
            self._expect(self._scales, (num_groups, num_rows))
            self._expect(self._zeros, (num_groups, packed_rows))
        else:
            shapes: list[tuple[int, ...]] = [(num_rows, num_groups)]
            if num_groups == 1:
                shapes += [(num_rows,), (1,), (1, 1), ()]
            self._expect(self._scales, *shapes)
            if self._zeros is not None and self._zeros.dtype == "int32":
                self._expect(self._zeros, (packed_rows, num_groups))
            else:
                self._expect(self._zeros, *shapes)
        self._expect(self._groups, (num_cols,))
        return num_groups

    def _expect(self, part: FolderTensor | None, *shapes: tuple[int, ...]) -> None:
        if part is not None and part.shape not in shapes:
            name = part.name.rpartition(".")[2]
            raise self._error(
                f"{name} has shape {part.shape}, a weight of shape {self.shape} in groups of "
                f"{self._scheme.group_size or self._num_cols} asks for {shapes[0]}"
            )

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {problem}")


def _read(tensor: FolderTensor) -> Words:
    """All of a tensor; bfloat16 as float32."""
    import numpy as np

    is_bfloat = tensor.dtype == "bfloat16"
    out = np.empty(tensor.shape, "uint16" if is_bfloat else tensor.dtype)
    if out.size:
        raw: Any = out.reshape(-1).view(np.uint8)
        tensor.read_into(memoryview(raw), 0)
    return (out.astype(np.uint32) << 16).view(np.float32) if is_bfloat else out
