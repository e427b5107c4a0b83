"""Labels that callers attach to what is kept for them, with OpenAI's bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

Metadata = dict[str, str]

MAX_PAIRS = 16
MAX_KEY_LEN = 64
MAX_VALUE_LEN = 512


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    """Refuse more labels than OpenAI takes, or longer ones.

    Raises:
        InvalidRequestError: names `metadata`.
    """
    if metadata is None:
        return
    if len(metadata) > MAX_PAIRS or any(
        len(key) > MAX_KEY_LEN or len(value) > MAX_VALUE_LEN for key, value in metadata.items()
    ):
        raise InvalidRequestError(
            f"metadata takes at most {MAX_PAIRS} pairs, keys of up to {MAX_KEY_LEN} and values of "
            f"up to {MAX_VALUE_LEN} characters",
            param="metadata",
        )
