"""The section `backends` of the gateway's configuration: where requests can be sent, what answers
there cost, and how long to wait for them. Values only.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

import msgspec

from octavo.errors import ConfigError
from octavo.gateway.backend_url import Address, parse_url
from octavo.gateway.backend_url import is_link_local as is_link_local
from octavo.gateway.model import DevicePrice, Price, TokenPrice
from octavo.gateway.secret import Secret
from octavo.ledger.record import to_nano

Kind = Literal["octavo", "vllm", "openai"]
"""What a backend understands beside OpenAI's protocol."""

MILLION = 1_000_000
MAX_SECONDS = 86_400.0
MAX_PRICE = Decimal(10**6)

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,64}")
_OUR_HEADERS = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "content-type", "cookie")
)


class PriceSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model's answers cost: by tokens (`input` and `output`), or by device time
    (`device_hour`). Nothing is free by silence: write `input: 0` and `output: 0`.

    Attributes:
        input: per million tokens of the prompt.
        cached_input: per million of them that were read from a cache; left out: as `input`.
        output: per million tokens of the answer.
        per_request: beside the tokens.
        device_hour: of one device for one hour.
        worst_input_us: device time that a token of a prompt takes at the most, microseconds: what
            is reserved before the engine has told what it used.
        worst_output_us: likewise, for a token of an answer.
        currency: three capital letters.
    """

    input: Decimal | None = None
    cached_input: Decimal | None = None
    output: Decimal | None = None
    per_request: Decimal = Decimal(0)
    device_hour: Decimal | None = None
    worst_input_us: Decimal = Decimal(1000)
    worst_output_us: Decimal = Decimal(50_000)
    currency: str = "USD"

    def __post_init__(self) -> None:
        by_tokens = self.input is not None and self.output is not None
        has_tokens = not (self.input is None and self.output is None and self.cached_input is None)
        if (self.device_hour is not None) == has_tokens or (has_tokens and not by_tokens):
            raise ValueError(
                "a price has `input` and `output`, per million tokens, or `device_hour`"
            )
        for name in ("input", "cached_input", "output", "per_request", "device_hour"):
            amount = getattr(self, name)
            if amount is not None:
                if not (amount.is_finite() and 0 <= amount <= MAX_PRICE):
                    raise ValueError(f"{name} must be from 0 to {MAX_PRICE}")
                if amount.scaleb(9) % 1:
                    raise ValueError(f"{name} must have at most nine decimals")
        if self.cached_input is not None and self.cached_input > (self.input or 0):
            raise ValueError("cached_input must not be above input: reserves are made with input")
        for name in ("worst_input_us", "worst_output_us"):
            if not (getattr(self, name).is_finite() and 0 < getattr(self, name) <= 10**9):
                raise ValueError(f"{name} must be above 0 and at most 1e9")
        if not re.fullmatch(r"[A-Z]{3}", self.currency):
            raise ValueError("currency must be three capital letters: USD")

    @property
    def price(self) -> Price:
        """As the gateway computes with it: integers."""
        if self.device_hour is not None:
            return DevicePrice(
                hourly_nano=to_nano(self.device_hour, "device_hour"),
                worst_input_ns=-int(-self.worst_input_us * 1000 // 1),
                worst_output_ns=-int(-self.worst_output_us * 1000 // 1),
                currency=self.currency,
            )
        assert self.input is not None
        assert self.output is not None
        cached = self.cached_input
        return TokenPrice(
            input=to_nano(self.input, "input"),
            output=to_nano(self.output, "output"),
            cached_input=None if cached is None else to_nano(cached, "cached_input"),
            request=to_nano(self.per_request, "per_request"),
            per=MILLION,
            currency=self.currency,
        )


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model at a backend.

    Attributes:
        context_length: tokens of prompt and answer together; bounds what a request that names no
            `max_tokens` can cost. Left out: not known.
        price: what its answers cost; left out: not known, and then no budget lets a request to it
            pass.
    """

    context_length: int | None = None
    price: PriceSection | None = None

    def __post_init__(self) -> None:
        if self.context_length is not None and self.context_length < 1:
            raise ValueError("context_length must be at least 1")


def _check_seconds(name: str, value: float) -> None:
    if not 0 < value <= MAX_SECONDS:
        raise ValueError(f"{name} must be above 0 and at most {MAX_SECONDS:.0f} seconds")


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long to wait for a backend, seconds.

    Attributes:
        connect: for a connection, name look-up and TLS included.
        first_token: from sending a request to the first event of a stream.
        idle: between two pieces of a stream; comments that keep it alive count as pieces.
        total: from sending a request to the end of its answer.
    """

    connect: float = 5.0
    first_token: float = 120.0
    idle: float = 60.0
    total: float = 600.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            _check_seconds(name, getattr(self, name))


class Probe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a backend is asked whether it is well.

    Attributes:
        interval: seconds between two probes; 0: none are made. Left out: 5, and 60 for kind
            `openai`, whose provider counts them.
        timeout: for an answer, seconds.
        failures: so many bad ones in a row make the backend unusable, until one good one; before
            the first good one, one.
        path: of the probe; left out: `/health`, and `/v1/models` for kind `openai`.
    """

    interval: float | None = None
    timeout: float = 2.0
    failures: int = 2
    path: str = ""

    def __post_init__(self) -> None:
        if self.interval:
            _check_seconds("interval", self.interval)
        elif self.interval is not None and self.interval != 0:
            raise ValueError("interval must be 0 or more seconds")
        _check_seconds("timeout", self.timeout)
        if self.failures < 1:
            raise ValueError("failures must be at least 1")
        if self.path and not re.fullmatch(r"/[\x21-\x7e]*", self.path):
            raise ValueError("path must begin with / and have no spaces")


class BreakerRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a backend gets no requests for a while, because too many have failed.

    Attributes:
        failures: so many failures within `window` open the breaker, where they are also `ratio` of
            the attempts in it.
        window: seconds.
        ratio: above 0, at most 1.
        open: seconds until one request is let through to see; doubled each time that it fails.
        max_open: bound of that.
    """

    failures: int = 5
    window: float = 30.0
    ratio: float = 0.5
    open: float = 5.0
    max_open: float = 60.0

    def __post_init__(self) -> None:
        if self.failures < 1:
            raise ValueError("failures must be at least 1")
        if not 0 < self.ratio <= 1:
            raise ValueError("ratio must be above 0 and at most 1")
        for name in ("window", "open", "max_open"):
            _check_seconds(name, getattr(self, name))
        if self.max_open < self.open:
            raise ValueError("max_open must not be below open")


class Backend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server that answers requests.

    Attributes:
        url: as OpenAI's clients take it (`https://api.openai.com/v1`), without path for servers
            that have `/v1` (`http://10.0.0.3:8000`), or a Unix socket (`unix:/run/octavo.sock`).
        kind: `octavo`, `vllm`, or any other server that speaks OpenAI's protocol, `openai`.
        api_key: sent to the backend, and never told to anybody else.
        auth_header: where the key goes: `Authorization` as a bearer, any other name as it is
            (`x-api-key`, `api-key`).
        headers: sent with every request, in addition.
        models: those that it has, by the name that it knows them by.
        timeouts: how long to wait.
        probe: how it is asked whether it is well.
        breaker: when it gets no requests for a while.
        max_connections: at a time; more requests wait for one, as long as for connecting.
        metered: it writes its own usage records to the gateway's ledger, so that the gateway
            writes none for it.
        ca_file: certificates that vouch for it, PEM; left out: the system's.
        allow_link_local: its address may be in 169.254.0.0/16 or fe80::/10, where clouds keep their
            machines' credentials.
    """

    url: str
    kind: Kind = "openai"
    api_key: Secret | None = None
    auth_header: str = "Authorization"
    headers: dict[str, Secret] = {}
    models: dict[str, ModelInfo] = {}
    timeouts: Timeouts = Timeouts()
    probe: Probe = Probe()
    breaker: BreakerRule = BreakerRule()
    max_connections: int = 2048
    metered: bool = False
    ca_file: str = ""
    allow_link_local: bool = False

    def __post_init__(self) -> None:
        address = parse_url(self.url)
        if not self.allow_link_local and is_link_local(address.host):
            raise ValueError(
                "url is a link-local address, where clouds keep credentials: "
                "set allow_link_local if a backend is there"
            )
        if not self.models:
            raise ValueError("models must name at least one model")
        if not 1 <= self.max_connections <= 100_000:
            raise ValueError("max_connections must be from 1 to 100000")
        if self.ca_file and address.scheme != "https":
            raise ValueError("ca_file is for https URLs")
        if not _HEADER_NAME.fullmatch(self.auth_header):
            raise ValueError("auth_header must be a header's name")
        if self.auth_header.lower() in _OUR_HEADERS:
            raise ValueError(f"auth_header must not be {self.auth_header}")
        for name in self.headers:
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"headers: {name[:64]!r} is no header's name")
            if name.lower() in _OUR_HEADERS:
                raise ValueError(f"headers: {name} is set by the gateway itself")

    @property
    def address(self) -> Address:
        """Where it listens."""
        return parse_url(self.url)

    @property
    def probe_interval_s(self) -> float:
        """Seconds between two probes; 0: none."""
        if self.probe.interval is not None:
            return self.probe.interval
        return 60.0 if self.kind == "openai" else 5.0

    def price(self, model: str) -> Price | None:
        """What a model's answers cost; None: not known."""
        info = self.models.get(model)
        return None if info is None or info.price is None else info.price.price


def check_backends(backends: dict[str, Backend]) -> None:
    """Return if all backends count in one currency: budgets add their costs up.

    Raises:
        ConfigError: they do not; names two of them.
    """
    first: tuple[str, str] | None = None
    for name, backend in backends.items():
        for model, info in backend.models.items():
            if info.price is None:
                continue
            where = f"backends.{name}.models.{model}"
            if first is None:
                first = where, info.price.currency
            elif info.price.currency != first[1]:
                raise ConfigError(
                    f"{where} is priced in {info.price.currency}, and {first[0]} in {first[1]}: "
                    "a gateway counts in one currency"
                )
