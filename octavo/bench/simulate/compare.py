"""One trace through the engine under several policies, and the report on all of them."""

from __future__ import annotations

import datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.bench.simulate.cost import CostModel
from octavo.bench.simulate.hardware import HOSTS, ModelShape
from octavo.bench.simulate.report import SimulationReport, summarize
from octavo.bench.simulate.run import Simulation
from octavo.bench.simulate.settings import EngineSettings
from octavo.runner.devices import DEVICES, WeightDType
from octavo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.bench.simulate.trace import Trace


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate beside the trace.

    Attributes:
        device, host: names of profiles.
        model: its shape.
        dtype: of the weights.
        settings: the engine's flags.
        policies: names, in the order of the report.
        slo_ms: bounds for goodput.
        load: what the trace was made of, for the report.
        skip: see `Simulation`.
    """

    device: str
    host: str
    model: ModelShape
    dtype: WeightDType = "bf16"
    settings: EngineSettings = EngineSettings()
    policies: tuple[str, ...] = ("fcfs",)
    slo_ms: dict[str, float] = {}
    load: dict[str, Any] = {}
    skip: bool = True


def compare(
    comparison: Comparison, trace: Trace, *, observer: Callable[[str, int], None] | None = None
) -> SimulationReport:
    """Simulate each policy in turn.

    Args:
        comparison: what to simulate.
        trace: what arrives.
        observer: called now and then with the policy and the requests ended so far.

    Raises:
        ConfigError: the model does not fit the device.
    """
    cost = CostModel(
        DEVICES[comparison.device], HOSTS[comparison.host], comparison.model, comparison.dtype
    )
    reports = []
    num_blocks = 0
    for policy in comparison.policies:

        def observe(num_ended: int, policy: str = policy) -> None:
            if observer is not None:
                observer(policy, num_ended)

        begin = perf_counter()
        simulation = Simulation(
            trace,
            cost,
            comparison.settings,
            policy=policy,
            skip=comparison.skip,
            observer=observe,
        )
        simulation.run()
        took = perf_counter() - begin
        num_blocks = simulation.kv_cache.num_blocks
        reports.append(
            summarize(simulation, policy=policy, slo_ms=comparison.slo_ms, simulated_in_s=took)
        )
    return SimulationReport(
        octavo_version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        setup={
            "device": comparison.device,
            "host": comparison.host,
            "model": comparison.model.name,
            "dtype": comparison.dtype,
            **msgspec.to_builtins(comparison.settings),
            "load": comparison.load,
        },
        num_requests=len(trace),
        num_kv_blocks=num_blocks,
        slo_ms=comparison.slo_ms,
        policies=reports,
    )
