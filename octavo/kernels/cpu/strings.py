"""Strings as a GGUF file has them, each behind its length, without a loop in Python
(src/strings.cpp).
"""

from __future__ import annotations

import ctypes

from octavo.kernels.cpu import library


class TooShortError(Exception):
    """The data end before the strings do."""


def read_strings(data: bytes, count: int) -> tuple[list[str], int]:
    """The first `count` strings in `data`, at least one, and how many bytes they take.

    Only where `cpu.why_not()` is None.

    Raises:
        TooShortError: there are fewer.
        ValueError: one is not UTF-8, or holds a NUL.
    """
    assert count > 0
    native = library().octavo_strings
    num_bytes = native(data, len(data), count, None)
    if num_bytes == -1:
        raise TooShortError
    if num_bytes < 0:
        raise ValueError("a string holds a NUL")
    joined = ctypes.create_string_buffer(num_bytes - 7 * count - 1 or 1)
    native(data, len(data), count, joined)
    return joined.raw[: num_bytes - 7 * count - 1].decode().split("\0"), num_bytes
