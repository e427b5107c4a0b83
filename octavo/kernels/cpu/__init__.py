"""Native kernels for CPUs: where their library is, whether it can be used, and its functions.

Knows how to load and to configure, no kernel: each has a module beside this one. Imports no torch.
The library is written in C++ (src/), compiled when Octavo is installed, or for a source tree by
`python -m octavo.kernels.cpu.build`. Where it is missing, torch computes instead.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

from octavo.config import cpu_activation_bits, default_cpu_isa

LIBRARY_NAME = "liboctavo_cpu.so"
ABI = 4
"""`OCTAVO_ABI` of src/abi.h."""

OFF = "off"
"""The value of OCTAVO_CPU_ISA that leaves everything to torch."""

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64

_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "abi": (_INT, []),
    "isas": (ctypes.c_char_p, []),
    "isa": (ctypes.c_char_p, []),
    "set_isa": (_INT, [ctypes.c_char_p]),
    "set_activation_bits": (_INT, [_INT]),
    "set_threads": (None, [_INT]),
    "threads": (_INT, []),
    "packed_bytes": (_LONG, [_INT, _LONG, _LONG]),
    "pack": (_INT, [_INT, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER]),
    "decode_rows": (_INT, [_POINTER, _POINTER, _LONG, _POINTER, _INT]),
    "linear": (None, [_POINTER, _POINTER, _LONG, _LONG, _POINTER, _POINTER, _LONG, _INT]),
    "run": (None, [_POINTER, _LONG, _POINTER]),
    "sample": (None, [_POINTER]),
    "strings": (_LONG, [ctypes.c_char_p, _LONG, _LONG, ctypes.c_char_p]),
    "pieces_new": (_POINTER, [ctypes.c_char_p, _LONG, _LONG, _POINTER, ctypes.c_char_p]),
    "pieces_free": (None, [_POINTER]),
    "pieces_find": (_INT, [_POINTER, ctypes.c_char_p, _LONG]),
    "pieces_merges": (_LONG, [_POINTER, _POINTER, _LONG]),
    "pieces_encode": (_LONG, [_POINTER, ctypes.c_char_p, _LONG, _INT, _POINTER]),
}
"""Result and parameters of each exported `octavo_...`, as in src/abi.h and src/kernels.def."""


def why_not() -> str | None:
    """Why the kernels cannot be used here, in one line; None: they can."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """The loaded library, with its functions' prototypes; only where `why_not()` is None."""
    loaded = _load()[0]
    assert loaded is not None
    return loaded


def available_isas() -> list[str]:
    """Instruction sets that were compiled and that this processor has, best first."""
    names: str = library().octavo_isas().decode()
    return names.split(",")


def isa() -> str:
    """The instruction set whose kernels run: OCTAVO_CPU_ISA's, or the best."""
    name: str = library().octavo_isa().decode()
    return name


def set_isa(name: str) -> None:
    """Take another of `available_isas()`.

    Raises:
        ValueError: it is not among them.
    """
    if not library().octavo_set_isa(name.encode()):
        raise ValueError(f"{name} is not one of {', '.join(available_isas())}")


def set_num_threads(count: int) -> None:
    """Threads that kernels may use, the calling one among them."""
    library().octavo_set_threads(count)


def forget() -> None:
    """Look for the library again when it is next asked for (tests, and after a build)."""
    _load.cache_clear()


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    wanted = default_cpu_isa()
    if wanted == OFF:
        return None, f"OCTAVO_CPU_ISA={OFF}"
    folders = [Path(folder) for folder in __path__]
    paths = [f / LIBRARY_NAME for f in folders if (f / LIBRARY_NAME).is_file()]
    if not paths:
        return None, _why_missing(folders)
    path = max(paths, key=lambda path: path.stat().st_mtime)  # an installed one, or one built since
    try:
        loaded = ctypes.CDLL(str(path))
        abi = loaded.octavo_abi
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded: {error}"
    has_all = all(hasattr(loaded, f"octavo_{name}") for name in _PROTOTYPES)
    if abi() != ABI or not has_all:
        return None, f"{path} is of another version of Octavo; install it again"
    for name, (result, parameters) in _PROTOTYPES.items():
        function = getattr(loaded, f"octavo_{name}")
        function.restype, function.argtypes = result, parameters
    if wanted is not None and not loaded.octavo_set_isa(wanted.encode()):
        known = loaded.octavo_isas().decode().replace(",", ", ")
        return None, f"OCTAVO_CPU_ISA={wanted} is not one of {known}, {OFF}"
    loaded.octavo_set_activation_bits(cpu_activation_bits())  # a number that it knows
    return loaded, None


def _why_missing(folders: list[Path]) -> str:
    for folder in folders:
        note = folder / "why_not.txt"
        if note.is_file():
            return note.read_text(encoding="utf-8").strip()
    return (
        f"{LIBRARY_NAME} was not built: `python -m octavo.kernels.cpu.build` does it, "
        "with a C++ compiler"
    )
