"""Executors: how the engine's core reaches one runner or several."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from octavo.errors import DeviceLostError
from octavo.runner.runner import ModelRunner

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.types import StepPlan, StepResult
    from octavo.weights.checkpoint import Checkpoint


def make_executor(
    config: EngineConfig, checkpoint: Checkpoint
) -> InProcessExecutor | ThreadExecutor:
    """The executor for one device.

    Raises:
        StartupError: the checkpoint, the flags or the memory do not allow it.
    """
    runs_ahead = config.async_scheduling
    if runs_ahead is None:
        name = config.device
        runs_ahead = torch.cuda.is_available() if name == "auto" else not name.startswith("cpu")
    return (ThreadExecutor if runs_ahead else InProcessExecutor)(config, checkpoint)


class InProcessExecutor:
    """One device, driven from the engine's own thread: `submit` returns when the step is done.

    Attributes:
        info: what was loaded and allocated.
        token_budget: tokens that a step may have.
        num_steps_ahead: steps that may be in flight while the next one is planned.
    """

    num_steps_ahead = 0

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self.runner = ModelRunner(config, checkpoint)
        self.info = self.runner.info
        self.token_budget = self.runner.token_budget

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """See `engine.executor.Executor`."""
        future: Future[StepResult] = Future()
        try:
            future.set_result(_execute(self.runner, plan))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Drop the model and the cache."""
        del self.runner


class ThreadExecutor:
    """One device, driven from a thread of its own: `submit` returns at once.

    Steps run one after another in the order of their plans, so a step finds what the one before it
    left in the runner's table, also when that one failed. The runner is made in the thread too:
    OpenMP's team of threads belongs to the thread that uses it.

    Attributes:
        info: what was loaded and allocated.
        token_budget: tokens that a step may have.
        num_steps_ahead: steps that may be in flight while the next one is planned.
    """

    num_steps_ahead = 1

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        try:
            self.runner = self._thread.submit(ModelRunner, config, checkpoint).result()
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        self.info = self.runner.info
        self.token_budget = self.runner.token_budget

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """See `engine.executor.Executor`."""
        return self._thread.submit(_execute, self.runner, plan)

    def close(self) -> None:
        """Drop the model and the cache."""
        self._thread.shutdown()
        del self.runner


def _execute(runner: ModelRunner, plan: StepPlan) -> StepResult:
    """Run a step.

    Raises:
        DeviceLostError: the device takes no further work.
        Exception: whatever else made the step fail; the next ones may well work.
    """
    try:
        return runner.execute(plan)
    except Exception as error:
        if runner.device.type == "cuda":
            try:
                torch.cuda.synchronize(runner.device)
            except RuntimeError:  # sticky, as after an illegal access: every call fails from now on
                raise DeviceLostError(f"{runner.device} is lost: {error}") from error
        raise
