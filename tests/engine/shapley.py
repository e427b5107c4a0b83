"""How near the meter's split of a step comes to the Shapley value of small batches.

The value is exact, by enumeration; what a subset of the batch would take is asked of the
simulator's model of a step, which the meter does not know: it rounds between memory and arithmetic,
has the small kernels' latencies, and adds up its parts otherwise.

`PYTHONPATH=. python tests/engine/shapley.py` prints the table of `docs/metering.md`.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from octavo.bench.simulate.cost import CostModel
from octavo.bench.simulate.hardware import HOSTS, MODELS
from octavo.engine.metering_split import StepCost
from octavo.runner.devices import DEVICES
from octavo.types import AttentionWork, WorkModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.engine.metering_split import Floats


def shapley(values: dict[frozenset[int], float], num: int) -> list[float]:
    """Each player's mean contribution over all orders of joining (Shapley, 1953), by subsets."""
    shares = []
    for player in range(num):
        others = [i for i in range(num) if i != player]
        share = 0.0
        for size in range(num):
            weight = math.factorial(size) * math.factorial(num - size - 1) / math.factorial(num)
            for joined in itertools.combinations(others, size):
                before = frozenset(joined)
                share += weight * (values[before | {player}] - values[before])
        shares.append(share)
    return shares


def step_times(
    model: CostModel, rows: Sequence[tuple[int, int, bool]]
) -> dict[frozenset[int], float]:
    """Seconds that a step of each subset of the rows takes."""
    times = {frozenset[int](): 0.0}
    for size in range(1, len(rows) + 1):
        for chosen in itertools.combinations(range(len(rows)), size):
            some = [rows[i] for i in chosen]
            times[frozenset(chosen)] = model.device_s(
                num_tokens=sum(new for _, new, _ in some),
                num_samples=sum(samples for _, _, samples in some),
                num_sequences=size,
                decode_context=sum(before + 1 for before, new, _ in some if new == 1),
                shared_context=0,
                prefills=[(before, new) for before, new, _ in some if new > 1],
            )
    return times


def work_of(model: CostModel) -> WorkModel:
    """The simulator's model and device in the meter's words."""
    shape, device = model.model, model.device
    width = shape.num_layers * shape.num_heads * shape.head_dim
    body = shape.num_layers * shape.layer_params
    return WorkModel(
        flops_per_token=2.0 * body,
        flops_per_sample=2.0 * shape.head_params,
        bytes_per_token=2.0 * shape.num_layers * (8 * shape.hidden_size),
        weight_bytes=2.0 * body,
        head_weight_bytes=2.0 * shape.head_params,
        attention=(AttentionWork(4.0 * width, float(shape.kv_bytes_per_token)),),
        flops_per_s=device.gemm_tflops["bf16"] * 1e12,
        bytes_per_s=device.gemm_read_gb_s * 1e9,
    )


BATCHES: dict[str, list[tuple[int, int, bool]]] = {
    "equal decodes": [(500, 1, True)] * 6,
    "contexts from 100 to 30000": [(n, 1, True) for n in (100, 500, 2000, 8000, 16000, 30000)],
    "a prompt among decodes": [(0, 512, True)] + [(n, 1, True) for n in (100, 1000, 4000, 8000)],
    "prompts of many lengths": [(0, n, True) for n in (16, 64, 256, 1024, 2048)],
    "a chunk deep in a prompt": [(16000, 512, False), (0, 512, True), (3000, 1, True)],
}


def shares(batch: str, device: str, model: str) -> tuple[Floats, Floats]:
    """Each request's part of a step: the meter's, and Shapley's."""
    rows = BATCHES[batch]
    simulated = CostModel(DEVICES[device], HOSTS["ideal"], MODELS[model])
    fair = np.array(shapley(step_times(simulated, rows), len(rows)))
    computed, new, samples = (np.array(c, np.float64) for c in zip(*rows, strict=True))
    cost = StepCost(work_of(simulated))
    split = cost.rows(computed, new, samples, float(new.sum()), float(samples.sum()))
    return split / split.sum(), fair / fair.sum()


def distance(batch: str, device: str, model: str) -> float:
    """How much of the step's time lies with another request than by Shapley: half the sum of the
    differences.
    """
    split, fair = shares(batch, device, model)
    return float(np.abs(split - fair).sum() / 2)


def main() -> None:
    """Print the table of `docs/metering.md`."""
    np.set_printoptions(precision=3, suppress=True)
    for batch in BATCHES:
        for model in ("llama-3.1-8b", "smollm2-135m"):
            split, fair = shares(batch, "h100", model)
            print(f"{batch} | {model} | {distance(batch, 'h100', model):.1%} | {split} | {fair}")


if __name__ == "__main__":
    main()
