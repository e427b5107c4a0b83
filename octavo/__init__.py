"""Octavo: serve, size, meter and govern open-weight language models.

`from octavo import LLM, SamplingParams` is the Python interface; importing the package itself
costs nothing, because all is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.llm import LLM
    from octavo.types import RequestOptions, SamplingParams

__all__ = ["LLM", "RequestOptions", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    if name == "LLM":
        from octavo.llm import LLM

        return LLM
    if name in ("RequestOptions", "SamplingParams"):
        from octavo import types

        found: object = getattr(types, name)
        return found
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
