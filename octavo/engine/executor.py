"""What the engine asks of the device's side. `runner/` implements it; tests use fakes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Future

    from octavo.types import EngineInfo, StepMasks, StepPlan, StepResult


class Executor(Protocol):
    """Runs steps in the order in which they are submitted.

    Attributes:
        info: what was loaded and allocated.
    """

    info: EngineInfo

    def submit(self, plan: StepPlan, masks: Future[StepMasks] | None = None) -> Future[StepResult]:
        """Begin a step.

        `masks` may be set after this returns, but before the next step is submitted, and by the
        thread that submits: the forward pass does not wait for it, only the sampling. Where
        `num_steps_ahead` is 0 it is set before. If it is cancelled or fails, the step fails.

        The future carries an exception when the step failed; rows of the failed step must then be
        reinitialised (`StepPlan.new_rows`) before they are used again. Steps that were planned
        before the failure was known may still name them: what those compute for them is ignored,
        and must not make them fail. `DeviceLostError` means that no step can run.
        """
        ...

    def close(self) -> None:
        """Free the device. No step may be in flight."""
        ...


class DeviceExecutor(Executor, Protocol):
    """An executor that brings what the engine is to be made with.

    Attributes:
        token_budget: tokens that a step may have.
        max_num_seqs: rows of the device's table.
        num_steps_ahead: steps that may be in flight while the next one is planned.
    """

    token_budget: int
    max_num_seqs: int
    num_steps_ahead: int
