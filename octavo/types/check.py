"""The check by which parameters refuse a value. Knows none of them."""

from __future__ import annotations

from octavo.errors import InvalidRequestError


def check(ok: bool, param: str, message: str) -> None:
    """Go on if `ok`.

    Raises:
        InvalidRequestError: it is not; the message, and `param`, the field that it is about.
    """
    if not ok:
        raise InvalidRequestError(message, param=param)
