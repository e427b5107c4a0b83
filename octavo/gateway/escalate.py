"""Asks a plan's tiers in turn until an answer is good enough. Implements `seams.Escalator`.

An answer of a tier with a judge is held back until it is judged: a stream, too, which is then given
from memory as it came. One that does not pass is dropped for the next tier's, and given after all
where no better one can be had. The last tier's answer is not held: there is nobody to ask after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.gateway.answer_text import JUDGED_ROUTES
from octavo.gateway.config_judges import EscalationSection
from octavo.gateway.escalate_chain import Chain
from octavo.gateway.model import Amount
from octavo.gateway.shadow import Shadows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from octavo.gateway.judge_process import JudgeProcesses
    from octavo.gateway.model import Attempt, Call, Plan, Target, Tier
    from octavo.gateway.seams import Dispatch, Judge, Outcome, Records


class Escalation:
    """Runs plans. Close it with `aclose` when no run and no outcome is left.

    Args:
        dispatch: sends.
        judges: by name, see `judge_build.build_judges`.
        worst: the most that a call can cost at a target; None: nobody knows, and then no plan with
            a bound on its cost lets the call go there.
        records: gets the attempts of shadows; those of a run are its caller's.
        section: of the configuration.
        processes: what the judges run in, closed with this; None: they need none.

    Attributes:
        shadows: that run.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        judges: Mapping[str, Judge],
        *,
        worst: Callable[[Call, Target], Amount | None],
        records: Records,
        section: EscalationSection | None = None,
        processes: JudgeProcesses | None = None,
    ) -> None:
        self.dispatch = dispatch
        self.judges = judges
        self.worst = worst
        self.section = section or EscalationSection()
        self.shadows = Shadows(
            dispatch,
            records,
            max_running=self.section.max_shadows,
            deadline_s=self.section.shadow_deadline,
        )
        self._processes = processes

    async def run(self, call: Call, plan: Plan, body: bytes, *, attempts: list[Attempt]) -> Outcome:
        """See `seams.Escalator.run`."""
        if plan.shadows:
            self.shadows.send(call, plan, body)
        return await Chain(self, call, plan, body, attempts).outcome()

    def worst_case(self, call: Call, plan: Plan) -> Amount | None:
        """See `seams.Escalator.worst_case`. Shadows are the operator's, not the caller's.

        A tier with several targets has one prompt more: a provider may charge for an attempt that
        fails, and another shall still be affordable then.
        """
        total = Amount()
        for tier in plan.tiers:
            asked = [(call, tier)]
            if tier.judge and call.route in JUDGED_ROUTES:
                asked += self.judges[tier.judge].asks(call)
            for one, asked_tier in asked:
                worst = self._dearest(one, asked_tier)
                if worst is None:
                    return None
                total += worst
                if len(asked_tier.targets) > 1:
                    failed = msgspec.structs.replace(one, max_tokens=0)
                    total += self._dearest(failed, asked_tier) or Amount()
        return total

    def _dearest(self, call: Call, tier: Tier) -> Amount | None:
        """The most of what each target can use; None: of one that is not known."""
        result = Amount()
        for target in tier.targets:
            worst = self.worst(call, target)
            if worst is None:
                return None
            result = Amount(
                max(result.cost_nano, worst.cost_nano),
                max(result.num_tokens, worst.num_tokens),
                max(result.device_ns, worst.device_ns),
            )
        return result

    async def aclose(self) -> None:
        """End shadows and what judges keep."""
        await self.shadows.aclose()
        for judge in self.judges.values():
            close = getattr(judge, "aclose", None)
            if close is not None:
                await close()
        if self._processes is not None:
            await self._processes.aclose()
