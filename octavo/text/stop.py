"""Finds stop strings in a text that comes in pieces, and holds back no more than it must.

One Knuth-Morris-Pratt automaton per stop string: a character costs the same however long the stop
strings are. Knows nothing of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopChecker:
    """Cuts a text before the first stop string.

    The stop string whose last character comes first wins, so that generation ends as soon as any
    is complete; of those that end together, the longest. The pieces' borders make no difference.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        assert all(stop), "an empty stop string stops nothing"
        self._stop = sorted(set(stop), key=len, reverse=True)
        self._borders = [_borders(text) for text in self._stop]
        self._matched = [0] * len(self._stop)  # characters of each that end the text so far
        self._first_chars = frozenset(text[0] for text in self._stop)
        self._held = ""  # the last max(self._matched) characters
        self._hit: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take the next piece.

        Returns:
            the text that is certain to stay, and the stop string that ended it, or None. After a
            hit there is no more text.
        """
        if self._hit is not None:
            return "", self._hit
        if not self._held and self._first_chars.isdisjoint(text):
            return text, None
        matched = self._matched
        for index, char in enumerate(text):
            for k, stop in enumerate(self._stop):
                length = matched[k]
                borders = self._borders[k]
                while length and stop[length] != char:
                    length = borders[length - 1]
                if stop[length] == char:
                    length += 1
                if length == len(stop):
                    self._hit = stop
                    whole = self._held + text[: index + 1]
                    self._held = ""
                    return whole[: -len(stop)], stop
                matched[k] = length
        whole = self._held + text
        num_safe = len(whole) - max(matched)
        self._held = whole[num_safe:]
        return whole[:num_safe], None

    def flush(self) -> str:
        """The text held back, when no more comes."""
        held, self._held = self._held, ""
        return held


def _borders(text: str) -> list[int]:
    """For each prefix of `text`, how long its longest proper prefix is that is also its suffix."""
    borders = [0]
    for char in text[1:]:
        length = borders[-1]
        while length and text[length] != char:
            length = borders[length - 1]
        borders.append(length + (text[length] == char))
    return borders
