"""What judges' sections have in common: the fields of all, and checks of values that several have.
Knows no kind of judge.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec

OnError = Literal["pass", "escalate"]
Hold = Literal["whole", "none"]

MAX_SECONDS = 600.0
MAX_PATTERN_CHARS = 4096


class BaseJudge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all judges have."""

    hold: Hold = "whole"
    on_error: OnError = "escalate"


def check_pattern(where: str, pattern: str) -> None:
    """Return if a text is a regular expression that Python takes.

    Raises:
        ValueError: it is none, or too long.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"{where} must have at most {MAX_PATTERN_CHARS} characters")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{where} is no regular expression: {error}") from None


def check_seconds(where: str, value: float) -> None:
    """Return if a time limit is one.

    Raises:
        ValueError: it is not above 0, or too long.
    """
    if not 0 < value <= MAX_SECONDS:
        raise ValueError(f"{where} must be above 0 and at most {MAX_SECONDS:.0f} seconds")


def check_finite(where: str, value: float | None) -> None:
    """Return if a number is finite, or left out.

    Raises:
        ValueError: it is neither.
    """
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number")
