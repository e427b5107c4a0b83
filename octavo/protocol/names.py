"""Errors in the words of the protocol that was asked in, where it was turned into another one."""

from __future__ import annotations

import re

from octavo.errors import InvalidRequestError

Names = tuple[tuple[re.Pattern[str], str], ...]
"""Patterns of fields' whole paths, and what they become (`re.Match.expand`); the first counts."""


def names(*pairs: tuple[str, str]) -> Names:
    """Patterns compiled, see `Names`."""
    return tuple((re.compile(pattern), path) for pattern, path in pairs)


def renamed(exc: InvalidRequestError, names: Names) -> InvalidRequestError:
    """The error with its field's path, in the message too, as these names spell it."""
    if exc.param is None:
        return exc
    for pattern, template in names:
        match = pattern.fullmatch(exc.param)
        if match is not None:
            param = match.expand(template)
            before = rf"(?<![\w.]){re.escape(exc.param)}(?!\w)"
            message = re.sub(before, param.replace("\\", r"\\"), exc.message)
            return InvalidRequestError(message, param=param, code=exc.code)
    return exc
