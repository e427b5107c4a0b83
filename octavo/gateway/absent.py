"""What stands in the place of parts that a configuration does not have. Each keeps to its seam."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.gateway.model import Amount, Attempt, Call, Plan


class NoReservation:
    """Nothing is held, and nothing bounds what a call may cost."""

    left_nano: int | None = None

    async def settle(self, used: Amount) -> None:
        """Nothing to give back."""


class NoBudgets:
    """There are no budgets."""

    _reservation = NoReservation()

    async def reserve(self, call: Call, worst: Amount | None) -> NoReservation:
        """Let every call pass."""
        return self._reservation

    async def close(self) -> None:
        """Nothing to end."""


class NoRecords:
    """There is no ledger."""

    def attempts(self, call: Call, plan: Plan, attempts: Sequence[Attempt]) -> None:
        """Keep nothing."""
