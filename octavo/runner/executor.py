"""Executors: how the engine's core reaches one runner or several."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from octavo.runner.runner import ModelRunner

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.types import StepPlan, StepResult
    from octavo.weights.checkpoint import Checkpoint


class InProcessExecutor:
    """One device, driven from the engine's own thread: `submit` returns when the step is done.

    Attributes:
        info: what was loaded and allocated.
        token_budget: tokens that a step may have.
    """

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self.runner = ModelRunner(config, checkpoint)
        self.info = self.runner.info
        self.token_budget = self.runner.token_budget

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """See `engine.executor.Executor`."""
        future: Future[StepResult] = Future()
        try:
            future.set_result(self.runner.execute(plan))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Drop the model and the cache."""
        del self.runner
