"""Device time, as requests are charged with it and an engine accounts for it, and what work costs.

Values only: how time is shared out is the meter's (`docs/metering.md`).
"""

from __future__ import annotations

import msgspec


class Charge(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Device time that a request is charged with, nanoseconds; see `docs/metering.md`.

    Attributes:
        prefill_ns: its share of steps, for tokens of its prompt.
        decode_ns: for tokens that it generated.
        waste_ns: how much of the two was for nothing: computing again after a preemption.
    """

    prefill_ns: int = 0
    decode_ns: int = 0
    waste_ns: int = 0

    @property
    def total_ns(self) -> int:
        """All of it; waste is a part of the other two."""
        return self.prefill_ns + self.decode_ns


class DeviceTime(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine's device time went since its process began, nanoseconds.

    `requests_ns` and the buckets add up to `num_devices * wall_ns` exactly, in every snapshot.

    Attributes:
        num_devices: of the engine; 0 where it is not metered.
        wall_ns: since the engine process began.
        requests_ns: charged to requests so far, those that have not ended included.
        startup_ns: loading the model, until the engine was ready.
        idle_ns: there was no request.
        scheduler_ns: the host planned a step or took in a result, and nothing ran.
        messages_ns: the host took requests or sent outputs, and nothing ran.
        launch_ns: the host handed a step over or waited for its result, and nothing ran.
        grammar_ns: the device waited for a grammar to be compiled, or for masks of one.
        run_ahead_ns: work for requests whose end was not known when the step was planned.
        failed_ns: steps that failed.
        in_flight_ns: since the last step that was accounted for; it belongs to the steps in flight
            and goes elsewhere when they end. The only one that ever falls.
    """

    num_devices: int = 0
    wall_ns: int = 0
    requests_ns: int = 0
    startup_ns: int = 0
    idle_ns: int = 0
    scheduler_ns: int = 0
    messages_ns: int = 0
    launch_ns: int = 0
    grammar_ns: int = 0
    run_ahead_ns: int = 0
    failed_ns: int = 0
    in_flight_ns: int = 0


class AttentionWork(msgspec.Struct, frozen=True, array_like=True):
    """What attention does, summed over the layers of one window.

    Attributes:
        flops_per_pair: of a token and one that it looks at.
        bytes_per_token: keys and values of one token in the cache.
        window: how many tokens one looks at, itself included; None: all before it.
    """

    flops_per_pair: float
    bytes_per_token: float
    window: int | None = None


class WorkModel(msgspec.Struct, frozen=True, kw_only=True):
    """What a step's tokens cost a device: a model's shape and the device's rates, as data.

    Attributes:
        flops_per_token: of all products but the output layer's.
        flops_per_sample: of the output layer, for each row that samples.
        bytes_per_token: activations that are read and written.
        weight_bytes: weights read in each step, the output layer's left out.
        head_weight_bytes: the output layer's, in each step that samples.
        attention: one entry for each kind of layer.
        is_causal: whether tokens look at those before them only.
        flops_per_s, bytes_per_s: what the device reaches.
    """

    flops_per_token: float
    flops_per_sample: float
    bytes_per_token: float
    weight_bytes: float
    head_weight_bytes: float
    attention: tuple[AttentionWork, ...]
    is_causal: bool = True
    flops_per_s: float
    bytes_per_s: float
