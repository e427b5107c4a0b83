from __future__ import annotations

from octavo.bench.simulate.cost import CostModel
from octavo.bench.simulate.hardware import HOSTS, MODELS
from octavo.bench.simulate.run import Simulation
from octavo.bench.simulate.settings import EngineSettings
from octavo.bench.simulate.trace import Lengths, Synthetic, Trace, make_trace
from octavo.runner.devices import DEVICES


def spec(num_requests: int, input_len: str, output_len: str, **fields: object) -> Synthetic:
    return Synthetic(
        num_requests=num_requests,
        input_len=Lengths.parse(input_len),
        output_len=Lengths.parse(output_len),
        **fields,  # type: ignore[arg-type]
    )


def cost(model: str = "llama-3.1-8b", host: str = "ideal", device: str = "h100") -> CostModel:
    return CostModel(DEVICES[device], HOSTS[host], MODELS[model])


def simulate(
    trace: Trace | Synthetic,
    *,
    policy: str = "fcfs",
    skip: bool = True,
    host: str = "ideal",
    **settings: object,
) -> Simulation:
    """A simulation that has run, with every block and row accounted for."""
    if isinstance(trace, Synthetic):
        trace = make_trace(trace)
    chosen = EngineSettings(**settings)  # type: ignore[arg-type]
    simulation = Simulation(trace, cost(host=host), chosen, policy=policy, skip=skip)
    simulation.run()
    simulation.scheduler.check_integrity()
    return simulation
