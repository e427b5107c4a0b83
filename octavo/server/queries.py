"""The query part of URLs: parameters that are known, each checked; others are refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_DIGITS = 9


class Query:
    """A request's query.

    Args:
        request: the request.
        names: the parameters that the route knows.

    Raises:
        InvalidRequestError: there is another one, or one is there twice.
    """

    def __init__(self, request: Request, *names: str) -> None:
        self._values: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            shown = name[:100]
            if name not in names:
                known = f", this route knows {', '.join(names)}" if names else ""
                raise InvalidRequestError(f"Unknown query parameter: {shown}{known}", param=shown)
            if name in self._values and not name.endswith("[]"):
                raise InvalidRequestError(f"{name} is given twice", param=name)
            self._values[name] = value

    def text(self, name: str) -> str | None:
        """The parameter as it is; None: left out."""
        return self._values.get(name)

    def flag(self, name: str) -> bool:
        """Whether it is true; left out is false.

        Raises:
            InvalidRequestError: it is neither true nor false.
        """
        value = self._values.get(name, "false").lower()
        if value not in ("true", "false"):
            raise InvalidRequestError(f"{name} must be true or false", param=name)
        return value == "true"

    def number(self, name: str, *, least: int, most: int) -> int | None:
        """The number that it is; None: left out.

        Raises:
            InvalidRequestError: it is none, or not in least..most.
        """
        value = self._values.get(name)
        if value is None:
            return None
        digits = value.removeprefix("-")
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS
        if not is_number or not least <= int(value) <= most:
            raise InvalidRequestError(f"{name} must be in {least}..{most}", param=name)
        return int(value)

    def choice(self, name: str, *allowed: str) -> str:
        """One of the words; left out is the first.

        Raises:
            InvalidRequestError: it is another one.
        """
        value = self._values.get(name, allowed[0])
        if value not in allowed:
            raise InvalidRequestError(f"{name} must be {' or '.join(allowed)}", param=name)
        return value
