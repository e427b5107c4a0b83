"""What the live page asks of the server: `GET /dashboard/data`.

Times are seconds, moments seconds since 1970 UTC, shares 0 to 1, money in the named currency. Made
for the page of the same version: programs read `/metrics`.
"""

from __future__ import annotations

import msgspec


class DashboardState(msgspec.Struct, frozen=True):
    """How the server is.

    Attributes:
        code: `up`, `draining`, `engine_restarting`, `engine_stuck` or `engine_dead`.
        message: more about it; empty where all is well.
    """

    code: str
    message: str = ""


class DashboardEngine(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine is, which does not change; `num_kv_tokens` fit into its KV cache."""

    architecture: str
    device: str
    num_devices: int
    dtype: str
    max_model_len: int
    num_kv_tokens: int
    tasks: tuple[str, ...]


class DashboardServers(msgspec.Struct, frozen=True):
    """Processes, and how often one took the place of one that failed."""

    num_api_servers: int
    num_api_server_restarts: int
    num_engine_restarts: int


class DashboardNow(msgspec.Struct, frozen=True, kw_only=True):
    """What goes on at this moment.

    Attributes:
        num_running, num_waiting: requests in the engine.
        num_open: HTTP requests that are being worked on.
        kv_usage: share of the KV cache.
    """

    num_running: int
    num_waiting: int
    num_open: int
    kv_usage: float


class DashboardTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of the server: since it began, or the engine where that is younger.

    Attributes:
        ends: ended requests by reason.
        num_rejected: refused as too many waited.
        prefix_queries, prefix_hits: tokens of prompts that were looked up in the prefix cache, and
            found there.
    """

    ends: dict[str, int]
    num_rejected: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_preemptions: int
    prefix_queries: int
    prefix_hits: int


class DashboardSeries(msgspec.Struct, frozen=True, kw_only=True):
    """The last minutes: columns of one length, a value every `step_s`; null: there was nothing.

    Attributes:
        times: of the values.
        step_s: between two of them.
        rate_s: that rates and the share of busy devices are taken over.
        window_s: that quantiles, means, hit rates and numbers of preemptions are taken over.
        ttft_bound, itl_bound: quantiles below are no more than that: below.
    """

    times: list[float]
    step_s: float
    rate_s: float
    window_s: float
    ttft_bound: float
    itl_bound: float
    running: list[float | None]
    waiting: list[float | None]
    kv_usage: list[float | None]
    prompt_rate: list[float | None]
    output_rate: list[float | None]
    request_rate: list[float | None]
    device_busy: list[float | None]
    ttft_p50: list[float | None]
    ttft_p95: list[float | None]
    itl_mean: list[float | None]
    itl_p95: list[float | None]
    e2e_p50: list[float | None]
    e2e_p95: list[float | None]
    prefix_hit_rate: list[float | None]
    preemptions: list[float | None]


class DashboardSpend(msgspec.Struct, frozen=True, kw_only=True):
    """What a feature's ended requests used.

    Attributes:
        feature: empty: requests that name none.
        cost: null: there is no price.
    """

    feature: str
    num_requests: int
    gpu_seconds: float
    waste_seconds: float
    cost: float | None
    currency: str
    num_input_tokens: int
    num_cached_tokens: int
    num_output_tokens: int


class DashboardLedger(msgspec.Struct, frozen=True, kw_only=True):
    """Today by UTC, as the ledger has it, of all servers that write to it.

    Attributes:
        state: `off`, `reading` until it was read for the first time, `ok`, or `failed`: then the
            rest is what was read last.
        message: why it failed.
        day: of the numbers.
        read_at: when they were read.
        features: those with the most device time first.
        num_more: further features that are not among them.
        num_written, num_spilled, num_lost: records of this server since it began.
    """

    state: str
    message: str = ""
    day: str = ""
    read_at: float | None = None
    features: list[DashboardSpend] = []
    num_more: int = 0
    num_written: int = 0
    num_spilled: int = 0
    num_lost: int = 0


class SlowRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that took long; never what was asked or answered.

    Attributes:
        ended_at: when.
        ttft: None: it had no first token.
        cost: null: there is no price.
    """

    ended_at: float
    request_id: str
    route: str
    feature: str
    model: str
    ttft: float | None
    e2e: float
    num_input_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    finish_reason: str
    gpu_seconds: float
    cost: float | None
    currency: str


class DashboardData(msgspec.Struct, frozen=True, kw_only=True):
    """All that the live page shows.

    Attributes:
        now: the server's clock.
        started: when the server began.
        models: names that requests may use, the first is the one in answers.
        price: of an hour of a device; null: there is none.
        device_seconds: of all devices since the engine began, by what they went to; empty: it is
            not metered.
        spend: by feature, since the server began.
        slowest: of the last `slow_s` seconds, the slowest first.
        settings: flags that matter here, by name.
    """

    now: float
    started: float
    version: str
    models: tuple[str, ...]
    state: DashboardState
    engine: DashboardEngine
    servers: DashboardServers
    load: DashboardNow
    totals: DashboardTotals
    series: DashboardSeries
    price: float | None
    currency: str
    device_seconds: dict[str, float]
    spend: list[DashboardSpend]
    ledger: DashboardLedger
    slowest: list[SlowRequest]
    slow_s: float
    settings: dict[str, str]
