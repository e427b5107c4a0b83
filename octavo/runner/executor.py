"""Executors: how the engine's core reaches one runner or several."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from octavo.errors import DeviceLostError
from octavo.runner.runner import ModelRunner
from octavo.types import StepResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.config import EngineConfig
    from octavo.runner.steps import LaunchedStep
    from octavo.types import StepMasks, StepPlan
    from octavo.weights.checkpoint import Checkpoint


def make_executor(config: EngineConfig, checkpoint: Checkpoint) -> DeviceExecutor:
    """The executor for one device.

    Raises:
        StartupError: the checkpoint, the flags or the memory do not allow it.
    """
    if config.async_scheduling and _is_cpu(config.device):
        return ThreadExecutor(config, checkpoint)
    runner = ModelRunner(config, checkpoint)
    if runner.runs_ahead and config.async_scheduling is not False:
        return StreamExecutor(runner)
    return InProcessExecutor(runner)


def _is_cpu(name: str) -> bool:
    return not torch.cuda.is_available() if name == "auto" else name.startswith("cpu")


class _RunnerExecutor:
    """One runner, called from the engine's own thread.

    Attributes:
        info: what was loaded and allocated.
        token_budget: tokens that a step may have.
        max_num_seqs: rows of the device's table.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.info = runner.info
        self.token_budget, self.max_num_seqs = runner.token_budget, runner.max_num_seqs

    def close(self) -> None:
        """Drop the model and the cache."""
        del self.runner


class InProcessExecutor(_RunnerExecutor):
    """`submit` returns when the step is done. Masks that are not set yet are waited for.

    Attributes:
        num_steps_ahead: steps that may be in flight while the next one is planned.
    """

    num_steps_ahead = 0

    def submit(self, plan: StepPlan, masks: Future[StepMasks] | None = None) -> Future[StepResult]:
        """See `engine.executor.Executor`."""
        future: Future[StepResult] = Future()
        try:
            future.set_result(_execute(self.runner, plan, masks))
        except Exception as error:
            future.set_exception(error)
        return future


class ThreadExecutor:
    """One device, driven from a thread of its own: `submit` returns at once.

    Steps run one after another in the order of their plans, so a step finds what the one before it
    left in the runner's table, also when that one failed. The runner is made in the thread too:
    OpenMP's team of threads belongs to the thread that uses it.

    Attributes:
        info: what was loaded and allocated.
        token_budget: tokens that a step may have.
        max_num_seqs: rows of the device's table.
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
        self.max_num_seqs = self.runner.max_num_seqs
        self._masks: Future[StepMasks] | None = None

    def submit(self, plan: StepPlan, masks: Future[StepMasks] | None = None) -> Future[StepResult]:
        """See `engine.executor.Executor`."""
        self._masks = masks
        return self._thread.submit(_execute, self.runner, plan, masks)

    def close(self) -> None:
        """Drop the model and the cache."""
        if self._masks is not None:
            self._masks.cancel()  # nobody will set them, and the thread would wait for ever
        self._thread.shutdown()
        del self.runner


class StreamExecutor(_RunnerExecutor):
    """A device with a queue of its own: `submit` returns when the step is in the queue.

    Without its masks that is the forward pass alone; whoever sets the masks, in the engine's own
    thread and before the next step, puts the sampling into the queue by that.

    Attributes:
        num_steps_ahead: steps that may be in flight while the next one is planned.
    """

    num_steps_ahead = 1

    def submit(self, plan: StepPlan, masks: Future[StepMasks] | None = None) -> Future[StepResult]:
        """See `engine.executor.Executor`."""
        with _device_errors(self.runner):
            return _Queued(self.runner, self.runner.launch(plan, masks))


class _Queued(Future[StepResult]):
    """Waits for the device when it is asked for the result, in the asking thread."""

    def __init__(self, runner: ModelRunner, step: LaunchedStep) -> None:
        super().__init__()
        self._runner, self._step = runner, step

    def result(self, timeout: float | None = None) -> StepResult:
        """The step's result; `timeout` is for those that cannot wait, and is not supported."""
        assert timeout is None
        with _device_errors(self._runner):
            return self._step.result()


DeviceExecutor = InProcessExecutor | ThreadExecutor | StreamExecutor


def _execute(runner: ModelRunner, plan: StepPlan, masks: Future[StepMasks] | None) -> StepResult:
    """Run a step.

    Raises:
        DeviceLostError: the device takes no further work.
        Exception: whatever else made the step fail; the next ones may well work.
    """
    with _device_errors(runner):
        return runner.execute(plan, masks)


@contextmanager
def _device_errors(runner: ModelRunner) -> Iterator[None]:
    """Tells a step that failed from a device that did.

    Raises:
        DeviceLostError: the device takes no further work.
    """
    try:
        yield
    except Exception as error:
        if runner.device.type == "cuda":
            try:
                torch.cuda.synchronize(runner.device)
            except RuntimeError:  # sticky, as after an illegal access: every call fails from now on
                raise DeviceLostError(f"{runner.device} is lost: {error}") from error
        raise
