"""The gguf package's reader, made fast enough for `transformers` to read real files in tests."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def read_once() -> Iterator[None]:
    """Within it, `transformers` parses each GGUF file once, and without NumPy's slow slices.

    It parses a file anew for the configuration, the tokenizer and the weights, and each slice of
    an `np.memmap` costs several of a plain array: with Gemma's 262,144 tokens, half a minute. What
    is read stays the same: the package's own code reads it from the same memory.
    """
    import gguf
    import numpy as np

    class PlainReader(gguf.GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lru_cache(PlainReader))
        yield
