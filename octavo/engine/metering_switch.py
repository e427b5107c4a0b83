"""Whether an engine meters: its meter, or one that does nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.engine.metering import Meter
from octavo.types import DeviceTime

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from octavo.engine.messages import Output
    from octavo.engine.metering import PromptLogprobs
    from octavo.engine.metering_time import Activity
    from octavo.engine.request import Request
    from octavo.types import Charge, EngineInfo, StepPlan

NOT_METERED = DeviceTime()


class Unmetered:
    """A `Meter` that does not: nothing is charged, and no time is told."""

    def turn_to(self, activity: Activity, now: int) -> None:
        """See `Meter`."""

    def launch(self, plan: StepPlan, requests: Sequence[Request], now: int) -> None:
        """See `Meter`."""

    def fail_launch(self) -> None:
        """See `Meter`."""

    def ready(self, began: int, now: int) -> None:
        """See `Meter`."""

    def wake(self, now: int) -> None:
        """See `Meter`."""

    def open(self, request: Request) -> None:
        """See `Meter`."""

    def close(self, outputs: Iterable[Output]) -> None:
        """See `Meter`."""

    def leave(self, request_id: str, last_step: int | None) -> None:
        """See `Meter`."""

    def take_charges(self) -> list[tuple[str, Charge]]:
        """There are none."""
        return []

    def end(
        self,
        plan: StepPlan,
        requests: Sequence[Request],
        device_ns: int,
        now: int,
        *,
        waited_ns: int = 0,
        told: PromptLogprobs = (),
    ) -> None:
        """See `Meter`."""

    def fail(self, plan: StepPlan, now: int) -> None:
        """See `Meter`."""

    def device_time(self, now: int) -> DeviceTime:
        """Nothing is known."""
        return NOT_METERED


def make_meter(info: EngineInfo, now: int) -> Meter | Unmetered:
    """The meter of an engine; one that does nothing where the device's side tells no rates."""
    if info.work is None:
        return Unmetered()
    return Meter(info.work, now, num_devices=info.num_devices)
