"""Configuration: frozen values, resolved once into new values, never patched in place.

The environment is read here and nowhere else, and only by the functions named `from_environment`
or `default_*`.
"""

from __future__ import annotations

import hashlib
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from octavo.errors import ConfigError
from octavo.types import PoolingType, SchedulingPolicy, Task

DType = Literal["auto", "float32", "bfloat16", "float16"]

LoadFormat = Literal["auto", "blocks", "decoded", "dummy"]

KVCacheDType = Literal["auto", "bfloat16", "int8", "fp8"]

TaskChoice = Literal["auto", Task]

PoolingChoice = Literal["auto", PoolingType]

LogLevel = Literal["debug", "info", "warning", "error"]

OTLPProtocol = Literal["grpc", "http/protobuf"]

GIB = 1024**3
MAX_PRICE = 1_000_000
_SUFFIXES = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": GIB, "t": 1024**4}


def parse_bytes(text: str) -> int:
    """Bytes from `4GiB`, `512M`, `1.5G` or a plain number; units are powers of 1024.

    Raises:
        ConfigError: not a size, or below one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*", text.lower())
    size = int(float(match[1]) * _SUFFIXES[match[2]]) if match else 0
    if size < 1:
        raise ConfigError(f"{text!r} is not a size in bytes: write 4GiB, 512MiB or a number")
    return size


def format_bytes(num_bytes: float) -> str:
    """`18.2 GiB`, `512.0 MiB`, `0 B`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.1f} {unit}" if unit != "B" else f"{num_bytes:.0f} B"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def default_home() -> Path:
    """The cache folder: `$OCTAVO_HOME`, else `$XDG_CACHE_HOME/octavo`, else `~/.cache/octavo`."""
    home = os.environ.get("OCTAVO_HOME")
    if home:
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "octavo"


def default_otel(name: str) -> str:
    """One of OpenTelemetry's own variables, such as `OTEL_TRACES_EXPORTER`; empty: it is unset."""
    return os.environ.get(name, "").strip()


def default_otlp_is_on() -> bool:
    """Whether OpenTelemetry's variables name a collector, and do not switch telemetry off."""
    if default_otel("OTEL_SDK_DISABLED").lower() == "true":
        return False
    signals = ("", "TRACES_", "METRICS_")
    return any(default_otel(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") for signal in signals)


def default_grpc_quiet() -> None:
    """Let gRPC's own library write errors only, unless the environment says otherwise.

    Must run before it is imported. By default it also tells on standard error, past our log, of
    every collector that goes away.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def default_cpu_isa() -> str | None:
    """The instruction set that `$OCTAVO_CPU_ISA` names for native kernels, `off`, or None."""
    return os.environ.get("OCTAVO_CPU_ISA") or None


def cpu_activation_bits() -> int:
    """Of activations in products with weights in blocks on a CPU: 8, or what
    `$OCTAVO_CPU_ACTIVATION_BITS` says.

    Raises:
        ConfigError: that is neither 8 nor 16.
    """
    given = os.environ.get("OCTAVO_CPU_ACTIVATION_BITS") or "8"
    if given not in ("8", "16"):
        raise ConfigError(f"OCTAVO_CPU_ACTIVATION_BITS must be 8 or 16, got {given!r}")
    return int(given)


def default_ledger() -> str:
    """The ledger that servers write, and reports read, unless told otherwise: a file at home."""
    return str(default_home() / "ledger.db")


def default_api_keys() -> tuple[str, ...]:
    """The keys in `$OCTAVO_API_KEY`, apart by commas; none when it is unset or empty."""
    keys = os.environ.get("OCTAVO_API_KEY", "").split(",")
    return tuple(key.strip() for key in keys if key.strip())


def read_api_keys(path: Path) -> tuple[str, ...]:
    """The keys in a file, one a line; empty lines and those that begin with `#` are none.

    Raises:
        ConfigError: it cannot be read, or it has no key: then everybody would be let in.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"cannot read the API keys in {path}: {reason}") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} has no API key: write one a line")
    return keys


def api_key_digest(key: str) -> bytes:
    """What is kept of an API key: its SHA-256.

    Keys are long and random, unlike passwords, so that a fast hash without salt keeps them.

    Raises:
        ConfigError: the key is empty or has characters that no header carries.
    """
    if not key or not key.isascii() or not key.isprintable() or key != key.strip():
        raise ConfigError("an API key must be printable ASCII, not empty, without outer spaces")
    return hashlib.sha256(key.encode("ascii")).digest()


def check_otlp_endpoint(url: str) -> None:
    """Refuse what is no collector's URL, or shows a password to whoever lists processes.

    Raises:
        ConfigError: what is wrong, and what helps.
    """
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https", "grpc") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(
            f"--otlp-endpoint must be a URL such as http://localhost:4317, got {url!r}"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "--otlp-endpoint must not hold a password: put a header into "
            "$OTEL_EXPORTER_OTLP_HEADERS"
        )


def check_price(price: Decimal | None, currency: str) -> None:
    """Return if that is the price of an hour.

    Raises:
        ConfigError: not above 0, more than nine decimals, too much, or no currency.
    """
    if price is not None and not (
        price.is_finite() and 0 < price < MAX_PRICE and price.scaleb(9) % 1 == 0
    ):
        raise ConfigError(
            f"--price-per-device-hour must be above 0 and below {MAX_PRICE}, with at most nine "
            f"decimals, got {price}: leave it out where there is no price"
        )
    if not re.fullmatch("[A-Z]{3}", currency):
        raise ConfigError(f"--currency must be three capital letters such as USD, got {currency!r}")


def default_thread_waiting() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise.

    Must run before torch is imported. By default they spin: on a machine that has anything else to
    do, each of a step's hundreds of parallel regions then waits for a thread that the spinning one
    keeps from its core (measured: 15 to 30 times slower beside one busy process).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def default_gpu_allocator() -> None:
    """Let a GPU's memory that torch holds grow and serve tensors of any size, unless the
    environment says otherwise.

    Must run before torch allocates on a GPU. By default each piece keeps the size it was asked for
    at first: steps of ever new shapes then took 1.7 GB more than the largest step alone.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its name before torch 2.9
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an engine process is started with. Names and meaning follow vLLM's flags.

    Attributes:
        model: a Hugging Face folder or a GGUF file, already on this machine.
        task: `generate` text; `embed` texts as vectors; `classify` texts; `score` pairs of texts.
            `auto` takes what the model's folder says it was made for.
        pooling_type: which hidden state an embedding is: the `mean` of a text's, that of its first
            token (`cls`) or its `last` one. `auto` takes what the folder says
            (1_Pooling/config.json), else `cls` for encoders and `last` for decoders.
        load_format: `decoded` reads the model's weights into the computing precision; `blocks`
            keeps a GGUF file's blocks as they are, and int4 or int8 weights of a folder as such
            blocks, for native kernels of a CPU (faster, with activations rounded to 8 bits;
            without the kernels torch computes the same, slowly); `auto` is `blocks` for these on a
            CPU, else `decoded`; `dummy` makes random weights, so that speed and memory of a model
            can be measured with its config.json alone.
        dtype: `auto` takes the checkpoint's precision where the device computes it well, and
            float32 where weights are kept in blocks.
        device: `auto` takes CUDA where there is a card.
        max_model_len: most tokens of prompt and output together; None: what the model allows.
        max_num_seqs: most requests in a batch; None: 256 on a CPU, 1024 on a GPU.
        max_num_batched_tokens: token budget of a step; None: 256 on a CPU, 8192 on a GPU.
        block_size: tokens per KV block.
        gpu_memory_utilization: share of the device's memory that Octavo may use in all; on a CPU,
            the share of the memory that is free after loading that the KV cache may use.
        scheduling_policy: order of waiting requests. `fcfs`: by arrival; `priority`: by the
            requests' `priority`, lower first, running ones give way; `fair`: the API key that got
            the least tokens so far first.
        async_scheduling: plan the next step while the device runs the last one; None: on a GPU.
        enforce_eager: launch every step kernel by kernel, without CUDA graphs.
        enable_prefix_caching: reuse the KV blocks of prompts that begin alike.
        kv_cache_memory: bytes for the KV cache; None: measured, see `gpu_memory_utilization`
            (on a CPU at most 4 GiB).
        kv_cache_dtype: `auto` keeps keys and values in the computing precision; `fp8` (e4m3,
            without scales) in half the memory of 16-bit ones, on a GPU; `bfloat16` is what `auto`
            takes on a CPU if weights are kept in blocks; `int8` (one scale for each vector) with
            the native attention of a CPU.
        attention_backend: `auto` or a backend's name.
        num_threads: threads for computing on a CPU; None: one per physical core at hand.
        seed: base of the seeds drawn for requests that bring none.
        metering: share each step's device time out to its requests, so that it is known what each
            one cost.
    """

    model: str
    task: TaskChoice = "auto"
    pooling_type: PoolingChoice = "auto"
    load_format: LoadFormat = "auto"
    dtype: DType = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    scheduling_policy: SchedulingPolicy = "fcfs"
    async_scheduling: bool | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    kv_cache_memory: int | None = None
    kv_cache_dtype: KVCacheDType = "auto"
    attention_backend: str = "auto"
    num_threads: int | None = None
    seed: int | None = None
    metering: bool = True

    def __post_init__(self) -> None:
        bounds: list[tuple[str, int | None, int]] = [
            ("--max-model-len", self.max_model_len, 1),
            ("--max-num-seqs", self.max_num_seqs, 1),
            ("--max-num-batched-tokens", self.max_num_batched_tokens, 1),
            ("--block-size", self.block_size, 1),
            ("--kv-cache-memory", self.kv_cache_memory, 1),
            ("--num-threads", self.num_threads, 1),
        ]
        for flag, value, least in bounds:
            if value is not None and value < least:
                raise ConfigError(f"{flag} must be at least {least}, got {value}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"--gpu-memory-utilization must be in (0, 1], got {self.gpu_memory_utilization}"
            )


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the HTTP server listens and whom it answers.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        uds: path of a Unix socket to listen at instead.
        ssl_certfile: certificate chain in PEM; with it the server speaks TLS only.
        ssl_keyfile: the certificate's private key in PEM; None: it is in `ssl_certfile`.
        api_key_digests: SHA-256 of keys that callers may present (see `api_key_digest`); empty: no
            authentication. The keys themselves are kept nowhere.
        allowed_origins: origins whose pages may read answers (CORS), `*` for all; empty: none.
        allowed_methods: what those pages may ask by, `*` for all.
        allowed_headers: what headers those pages may send, `*` for all.
        allow_credentials: those pages may send cookies and the like.
        api_server_count: processes that serve HTTP, tokenize and detokenize; with more than one,
            many streams do not hang on one core.
        state_dir: folder for what outlives a request (stored answers, files, batches), common to
            all API servers; None: a temporary one that is removed at the end.
        served_model_names: names that requests may use; the first is the one in answers.
        tool_call_parser: how the model writes tool calls: a format's name, `auto` by its chat
            template, `none` to refuse tools.
        reasoning_parser: how the model writes its reasoning: a format's name, `auto` by its chat
            template, `none` to leave it in the text.
        trust_request_chat_template: requests may bring a chat template of their own, which is
            rendered in the model's place, sandboxed.
        max_body_bytes: larger request bodies are refused with 413.
        max_header_bytes: longer heads of requests, URL included, are refused with 431.
        sse_keep_alive: seconds of silence in a stream after which a comment is sent, so that
            proxies do not give it up; 0 sends none.
        shutdown_timeout: seconds that running requests get to finish after the first SIGTERM.
        log_level: least level that is logged.
        ledger: where a record of what each request used and cost is kept: a file's path, as
            `sqlite:///FILE` or plain, or `postgresql://USER:PASSWORD@HOST/NAME`; None: nowhere.
            Several servers may share one.
        ledger_retention_days: days after which requests' own records are deleted; sums by the hour
            stay. None: they are kept.
        price_per_device_hour: what an hour of one device costs, which makes device time a cost, in
            records and answers; None: no price, no costs.
        currency: of the price, three capital letters.
        log_usage: write each record also to the log, as a line of JSON.
        otlp_endpoint: URL of the OpenTelemetry collector that gets traces and metrics, such as
            http://localhost:4317; None: what $OTEL_EXPORTER_OTLP_ENDPOINT says, else nobody gets
            any.
        otlp_protocol: how to speak to it; None: what $OTEL_EXPORTER_OTLP_PROTOCOL says, else
            `grpc`.
        otlp_traces_sample_ratio: share of traces that are sent, 0 to 1, of those that begin here:
            a caller's own decision is kept to; None: what $OTEL_TRACES_SAMPLER says, else all.
        max_num_queued_requests: most requests that wait for a place in the batch; more get a 503
            with Retry-After; None: no bound.
        watchdog_timeout: seconds without a finished step, while there are requests, after which the
            engine counts as stuck and is killed; must be longer than any step takes.
        max_engine_restarts: engine processes started anew within ten minutes, before the server
            gives up and exits with 70.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    api_key_digests: tuple[bytes, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    api_server_count: int = 1
    state_dir: str | None = None
    served_model_names: tuple[str, ...] = ()
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    trust_request_chat_template: bool = False
    max_body_bytes: int = 32 * 1024**2
    max_header_bytes: int = 64 * 1024
    sse_keep_alive: float = 15.0
    shutdown_timeout: float = 30.0
    log_level: LogLevel = "info"
    ledger: str | None = None
    ledger_retention_days: float | None = None
    price_per_device_hour: Decimal | None = None
    currency: str = "USD"
    log_usage: bool = False
    otlp_endpoint: str | None = None
    otlp_protocol: OTLPProtocol | None = None
    otlp_traces_sample_ratio: float | None = None
    max_num_queued_requests: int | None = None
    watchdog_timeout: float = 120.0
    max_engine_restarts: int = 3

    def __post_init__(self) -> None:
        bounds: list[tuple[str, float | None, float]] = [
            ("--api-server-count", self.api_server_count, 1),
            ("--max-num-queued-requests", self.max_num_queued_requests, 0),
            ("--max-engine-restarts", self.max_engine_restarts, 0),
            ("--max-body-bytes", self.max_body_bytes, 1),
            ("--max-header-bytes", self.max_header_bytes, 1),
            ("--sse-keep-alive", self.sse_keep_alive, 0),
            ("--shutdown-timeout", self.shutdown_timeout, 0),
        ]
        for flag, value, least in bounds:
            if value is not None and not value >= least:
                raise ConfigError(f"{flag} must be at least {least}, got {value}")
        check_price(self.price_per_device_hour, self.currency)
        days = self.ledger_retention_days
        if days is not None and not 0 < days < 36_500:
            raise ConfigError(f"--ledger-retention-days must be above 0, got {days:g}")
        if self.otlp_endpoint is not None:
            check_otlp_endpoint(self.otlp_endpoint)
        ratio = self.otlp_traces_sample_ratio
        if ratio is not None and not 0 <= ratio <= 1:
            raise ConfigError(f"--otlp-traces-sample-ratio must be in 0..1, got {ratio}")
        if not self.watchdog_timeout > 0:
            raise ConfigError(f"--watchdog-timeout must be above 0, got {self.watchdog_timeout}")
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile")
        if not self.allowed_origins:
            for flag, is_given in (
                ("--allow-credentials", self.allow_credentials),
                ("--allowed-methods", self.allowed_methods != ("*",)),
                ("--allowed-headers", self.allowed_headers != ("*",)),
            ):
                if is_given:
                    raise ConfigError(f"{flag} needs --allowed-origins")
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ConfigError(
                "--allow-credentials with every origin would let any page use its visitors' "
                "credentials: name the origins in --allowed-origins"
            )

    @property
    def hourly_rate_nano(self) -> int:
        """The price in 1e-9 of the currency; 0: there is none."""
        price = self.price_per_device_hour
        return 0 if price is None else int(price.scaleb(9))
