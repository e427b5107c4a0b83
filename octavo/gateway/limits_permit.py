"""What a request holds of limits while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.gateway.limits_answers import headers_of
from octavo.gateway.limits_store import Taking

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo.gateway.limits_store import Counter


class RatePermit:
    """One request that is in; see `seams.Permit`.

    Args:
        counters: of the limits that hold for it.
        tokens: that it reserved of each.
        taking: what was taken of them.
    """

    __slots__ = ("_counters", "_is_settled", "_taking", "_tokens")

    def __init__(self, counters: Sequence[Counter], tokens: Sequence[int], taking: Taking) -> None:
        self._counters = counters
        self._tokens = tokens
        self._taking = taking
        self._is_settled = taking.store is None

    @property
    def headers(self) -> Mapping[str, str]:
        """OpenAI's `x-ratelimit-*`, as they stand after this request; of several limits the one
        that has the least left. Empty where no limit holds.
        """
        return headers_of(self._counters, self._taking.standings)

    async def settle(self, num_tokens: int) -> None:
        """The request has ended and used this many; only the first call counts."""
        if self._is_settled or self._taking.store is None:
            return
        self._is_settled = True
        unused = [reserved - num_tokens for reserved in self._tokens]
        await self._taking.store.give_back(self._taking, self._counters, unused, undo=False)


FREE = RatePermit((), (), Taking(True, ()))
"""Of requests for which no limit holds."""


async def undo(taking: Taking, counters: Sequence[Counter], tokens: Sequence[int]) -> None:
    """Give back what was taken for somebody who has gone."""
    if taking.store is not None:
        await taking.store.give_back(taking, counters, tokens, undo=True)
