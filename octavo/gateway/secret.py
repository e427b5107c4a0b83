"""A secret of the configuration: its text is told to who asks for it by name, and shown nowhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

MAX_BYTES = 64 * 1024
_NAME = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Secret:
    """Some text that no repr, message or encoder shows. Equal where the text is.

    Args:
        text: the secret itself.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def read(cls, written: str) -> Secret:
        """A secret as the configuration writes it.

        Args:
            written: `${NAME}`, from the environment; `file:/path`, without the line's end; other
                text is the secret itself, in which `${NAME}` is replaced.

        Raises:
            ValueError: the variable is not set, the file cannot be read, or it is empty, or is not
                printable ASCII in one line. The message has the name, and nothing of the secret.
        """
        if written.startswith("file:"):
            path = Path(written.removeprefix("file:"))
            try:
                with path.open("rb") as file:
                    data = file.read(MAX_BYTES + 1)
            except OSError as error:
                raise ValueError(f"cannot read {path}: {error.strerror}") from None
            text, where = data.decode("latin-1").strip(), str(path)
        else:
            text, where = _NAME.sub(_from_environment, written), "the value"
        if not text:
            raise ValueError(f"{where} is empty")
        if len(text) > MAX_BYTES or not (text.isascii() and text.isprintable()):
            raise ValueError(f"{where} must be one line of printable ASCII")
        return cls(text)

    def reveal(self) -> str:
        """The text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        raise TypeError("a secret is not written anywhere")


def _from_environment(match: re.Match[str]) -> str:
    value = os.environ.get(match[1])
    if value is None:
        raise ValueError(f"the environment has no {match[1]}")
    return value


def decode_hook(kind: type, value: object) -> object:
    """What `msgspec.convert` calls for types that are not its own: makes secrets of text.

    Raises:
        ValueError: see `Secret.read`.
    """
    if kind is not Secret:
        raise NotImplementedError(f"no way to make a {kind}")
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text: ${NAME}, file:/path or the secret itself")
    return Secret.read(value)
