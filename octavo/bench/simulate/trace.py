"""What arrives when: requests as columns of numbers, from a distribution and a seed.

A token is the number of the segment that it belongs to: a request's own prompt and output are one
segment, a shared prefix another. Two prompts then begin with the same tokens exactly when they
begin with the same segments, which is all that a prefix cache looks at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Segment = tuple[int, int]
"""Number (the token that fills it), length."""
Arrivals = Literal["at-once", "poisson", "gamma", "uniform"]

MAX_REQUESTS = 2**29


@dataclass(slots=True)
class Trace:
    """Requests in the order of their arrival.

    Attributes:
        arrival_s: seconds from the start, rising.
        input_len, output_len: tokens, at least 1 each (made so by whoever makes the trace).
        tenant: index into `tenants`.
        priority: lower runs earlier under the priority policy.
        prefixes: leading segments of each prompt; None: no two prompts begin alike.
        after: index of the request whose end this one waits for (an earlier turn), or -1.
        think_s: pause after that end.
        concurrency: most requests in flight at once, per client; None: no bound.
    """

    arrival_s: NDArray[np.float64]
    input_len: NDArray[np.int64]
    output_len: NDArray[np.int64]
    tenant: NDArray[np.int64]
    priority: NDArray[np.int64]
    tenants: list[str] = field(default_factory=lambda: [""])
    prefixes: list[tuple[Segment, ...]] | None = None
    after: NDArray[np.int64] | None = None
    think_s: NDArray[np.float64] | None = None
    concurrency: int | None = None

    def __len__(self) -> int:
        return len(self.input_len)

    def prompt(self, index: int) -> list[int]:
        """The prompt's tokens."""
        length = int(self.input_len[index])
        own = self.own_token(index)
        if self.prefixes is None:
            return [own] * length
        tokens: list[int] = []
        for number, count in self.prefixes[index]:
            tokens += [number] * count
        return tokens[:length] + [own] * (length - len(tokens))

    def own_token(self, index: int) -> int:
        """The token of a request's own segment, its output among it."""
        return index + 1

    @property
    def shared_token(self) -> int:
        """Numbers from here on belong to no request."""
        return len(self) + 1


class Lengths(msgspec.Struct, frozen=True):
    """A distribution of lengths.

    Attributes:
        kind: `uniform` in a..b, `lognormal` with mean a and sigma b of its logarithm, or `list`.
        values: for `list`, drawn from in order, again from the front when they end.
    """

    kind: Literal["uniform", "lognormal", "list"]
    a: float = 0.0
    b: float = 0.0
    low: int = 1
    high: int = 2**31
    values: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """From `128`, `64:256`, `lognormal:MEAN:SIGMA` or `lognormal:MEAN:SIGMA:LOW:HIGH`.

        Raises:
            ConfigError: none of them.
        """
        kind, *parts = text.split(":") if text.startswith("lognormal:") else ("uniform", text)
        try:
            if kind == "lognormal":
                mean, sigma, *bounds = parts
                low, high = (int(bound) for bound in bounds) if bounds else (1, 2**31)
                lengths = cls("lognormal", float(mean), float(sigma), low, high)
                ok = lengths.a >= 1 and 0 <= lengths.b < 10 and 1 <= low <= high
            else:
                first, _, last = text.partition(":")
                low, high = int(first), int(last or first)
                lengths = cls("uniform", low, high, low, high)
                ok = 1 <= low <= high
        except ValueError:
            ok = False
        if not ok:
            raise ConfigError(
                f"{text!r} is not a length: write 128, 64:256, lognormal:220:1.0 or "
                "lognormal:220:1.0:16:2048 (mean, sigma, least, most)"
            )
        return lengths

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`count` lengths."""
        if self.kind == "list":
            return np.resize(np.asarray(self.values, dtype=np.int64), count)
        if self.kind == "uniform":
            return rng.integers(int(self.a), int(self.b) + 1, count)
        drawn = rng.lognormal(np.log(self.a) - self.b**2 / 2, self.b, count)
        return np.clip(drawn, self.low, self.high).astype(np.int64)


class Tenant(msgspec.Struct, frozen=True):
    """A share of the requests; `priority` is that of each."""

    name: str
    share: float
    priority: int = 0


class Synthetic(msgspec.Struct, frozen=True, kw_only=True):
    """A workload by its distributions.

    Attributes:
        num_requests: how many.
        input_len: own tokens per prompt, after any prefix; per turn in a session.
        output_len: tokens generated per request, exactly.
        arrivals: `at-once`; else gaps with mean 1/rate: exponential, gamma, or all the same.
        burstiness: shape of the gamma distribution; 1 is Poisson, less comes in bursts.
        concurrency: closed loop: the next request leaves when one of so many ends.
        num_prefixes, prefix_len: each prompt begins with one of so many shared prefixes.
        turns: requests per session; a turn's prompt is the whole conversation before it, and it
            leaves `think_s` after the end of the turn before.
        tenants: shares need not add up to 1; empty: one tenant.
        seed: of everything.
    """

    num_requests: int
    input_len: Lengths
    output_len: Lengths
    arrivals: Arrivals = "at-once"
    rate: float = 0.0
    burstiness: float = 1.0
    concurrency: int | None = None
    num_prefixes: int = 0
    prefix_len: int = 0
    turns: int = 1
    think_s: float = 0.0
    tenants: tuple[Tenant, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            f"--num-requests must be in 1..{MAX_REQUESTS}": 1 <= self.num_requests <= MAX_REQUESTS,
            "--rate must be above 0": self.arrivals == "at-once" or 0 < self.rate < float("inf"),
            "--burstiness must be above 0": self.burstiness > 0,
            "--concurrency must be at least 1": self.concurrency is None or self.concurrency > 0,
            "--prefix-len must be 0 or more": self.prefix_len >= 0,
            "--turns must be at least 1": self.turns >= 1,
            "--think-time must be 0 or more": self.think_s >= 0,
            "shares of tenants must be above 0": all(t.share > 0 for t in self.tenants),
            "tenants must have different names": len({t.name for t in self.tenants})
            == len(self.tenants),
        }
        for message, ok in checks.items():
            if not ok:
                raise ConfigError(message)


def make_trace(spec: Synthetic) -> Trace:
    """Draw the workload; the same spec makes the same trace."""
    rng = np.random.default_rng(spec.seed)
    count = spec.num_requests
    input_len = spec.input_len.draw(count, rng)
    output_len = spec.output_len.draw(count, rng)
    num_sessions = -(-count // spec.turns)
    starts = _arrivals(spec, num_sessions, rng)
    tenants = spec.tenants or (Tenant("", 1.0),)
    shares = np.array([tenant.share for tenant in tenants])
    of_session = rng.choice(len(tenants), num_sessions, p=shares / shares.sum())
    session = np.arange(count) % num_sessions
    tenant = of_session[session]
    trace = Trace(
        arrival_s=starts[session],
        input_len=input_len,
        output_len=output_len,
        tenant=tenant,
        priority=np.array([t.priority for t in tenants], dtype=np.int64)[tenant],
        tenants=[t.name for t in tenants],
        concurrency=spec.concurrency,
    )
    if spec.turns > 1:
        trace.after = np.where(
            np.arange(count) >= num_sessions, np.arange(count) - num_sessions, -1
        )
        trace.think_s = np.full(count, spec.think_s)
    if spec.turns > 1 or spec.prefix_len:
        group = rng.integers(0, max(spec.num_prefixes, 1), num_sessions)
        _add_prefixes(trace, spec.prefix_len, group, num_sessions)
    return trace


def _arrivals(spec: Synthetic, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    if spec.arrivals == "at-once":
        return np.zeros(count)
    if spec.arrivals == "uniform":
        return np.arange(count) / spec.rate
    shape = spec.burstiness if spec.arrivals == "gamma" else 1.0
    gaps = rng.gamma(shape, 1 / (shape * spec.rate), count)
    times: NDArray[np.float64] = np.cumsum(gaps) - gaps[0]
    return times


def _add_prefixes(
    trace: Trace, prefix_len: int, group: NDArray[np.int64], num_sessions: int
) -> None:
    """Leading segments, and prompts longer by them: the shared prefix, then all earlier turns."""
    base = trace.shared_token
    histories: list[tuple[Segment, ...]] = [
        ((base + int(number), prefix_len),) if prefix_len else () for number in group
    ]
    prefixes: list[tuple[Segment, ...]] = []
    context = np.full(num_sessions, prefix_len)
    for index in range(len(trace)):
        session = index % num_sessions
        prefixes.append(histories[session])
        own = int(trace.input_len[index])
        total = own + int(trace.output_len[index])
        histories[session] += ((trace.own_token(index), total),)
        trace.input_len[index] = own + context[session]
        context[session] += total
    trace.prefixes = prefixes
