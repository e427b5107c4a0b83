"""Steps in a device's queue, as the host sees them: where they end, and what they bring."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from octavo.types import StepResult

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from octavo.runner.prompt_logprobs import PromptReports
    from octavo.runner.reports import Reports
    from octavo.types import StepMasks


class Mark(Protocol):
    """A place in a device's queue, such as a CUDA event."""

    def synchronize(self) -> None:
        """Wait until the device has come here."""
        ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds until `end`."""
        ...


class HostMark:
    """A place in the queue of a device that computes at once."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """See `Mark`."""

    def elapsed_time(self, end: HostMark) -> float:
        """See `Mark`."""
        return (end._at - self._at) * 1e3


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """A step in the device's queue.

    Attributes:
        token_ids: [n] int32 in pinned memory, valid after `end` and until the memory is used again
            by the step that comes `NUM_SLOTS` later; None where no row samples.
        reports: log-probabilities of the sampled tokens, if any row asked for some.
        prompt: of prompts' tokens.
        num_seqs: scheduled rows.
        waited: between these places the device had nothing to do, for masks were missing.
    """

    step_id: int
    begin: Mark
    end: Mark
    token_ids: np.ndarray | None = None
    reports: Reports | None = None
    prompt: PromptReports | None = None
    num_seqs: int = 0
    waited: tuple[Mark, Mark] | None = None

    def result(self) -> StepResult:
        """See `LaunchedStep`."""
        self.end.synchronize()
        device_ns = round(self.begin.elapsed_time(self.end) * 1e6)
        token_ids: list[int] = [] if self.token_ids is None else self.token_ids.tolist()
        logprobs = [] if self.reports is None else self.reports.entries(len(token_ids))
        prompt = [] if self.prompt is None else self.prompt.entries(self.num_seqs)
        waited_ns = 0
        if self.waited is not None:
            waited_ns = round(self.waited[0].elapsed_time(self.waited[1]) * 1e6)
        return StepResult(self.step_id, token_ids, logprobs, device_ns, prompt, waited_ns)


class DeferredStep:
    """A step that samples once its masks are set, in the thread that sets them.

    Args:
        masks: set later. If they are cancelled or fail, the step fails.
        finish: puts the sampling into the queue.
    """

    def __init__(self, masks: Future[StepMasks], finish: Callable[[StepMasks], DeviceStep]) -> None:
        self._step: Future[DeviceStep] = Future()
        self._finish = finish
        masks.add_done_callback(self._continue)

    @property
    def is_queued(self) -> bool:
        """Whether all of the step is in the device's queue, or it has failed."""
        return self._step.done()

    def result(self) -> StepResult:
        """See `LaunchedStep`. Waits for the masks too."""
        return self._step.result().result()

    def _continue(self, masks: Future[StepMasks]) -> None:
        try:
            self._step.set_result(self._finish(masks.result()))
        except Exception as error:  # of the masks, or of the sampling: it is the step's result
            self._step.set_exception(error)
