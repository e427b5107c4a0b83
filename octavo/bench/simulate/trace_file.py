"""Traces from files: a request a line, in JSON or CSV.

Columns, by any of these names; times count from the first arrival:

    arrival_s, TIMESTAMP (ISO 8601 or seconds), timestamp (milliseconds)    when it arrives
    input_len, ContextTokens, num_prefill_tokens, input_length              prompt tokens
    output_len, GeneratedTokens, num_decode_tokens, output_length           tokens generated
    tenant, priority                                                        optional
    prefix: [[name, length], ...]                                           optional, JSON only
    hash_ids: [id, ...]                                                     optional, JSON only

A prompt begins with its `prefix` segments: prompts that name the same segments in the same order
begin alike. `ContextTokens` and its fellows are the columns of the Azure LLM inference traces.
`timestamp`, `input_length`, `output_length` and `hash_ids` (each stands for 512 tokens of the
prompt) are those of the Mooncake traces.
"""

from __future__ import annotations

import csv
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from octavo.bench.simulate.trace import MAX_REQUESTS, Lengths, Trace
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_INPUT = ("input_len", "ContextTokens", "num_prefill_tokens", "input_length")
_OUTPUT = ("output_len", "GeneratedTokens", "num_decode_tokens", "output_length")
_HASH_TOKENS = 512


class _Lengths(msgspec.Struct):
    input: list[int]
    output: list[int]


def load_lengths(path: Path) -> tuple[Lengths, Lengths]:
    """Pairs of lengths from a JSON file `{"input": [...], "output": [...]}`.

    Raises:
        ConfigError: not readable, or not that.
    """
    try:
        lengths = msgspec.json.decode(path.read_bytes(), type=_Lengths)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"cannot read lengths from {path}: {error}") from None
    columns = lengths.input, lengths.output
    if not lengths.input or len(lengths.input) != len(lengths.output) or min(map(min, columns)) < 1:
        raise ConfigError(f"{path} needs as many input as output lengths, each at least 1")
    inputs, outputs = (Lengths("list", values=tuple(column)) for column in columns)
    return inputs, outputs


def load_trace(
    path: Path, *, limit: int | None = None, speed: float = 1.0, concurrency: int | None = None
) -> Trace:
    """A trace from a JSONL or (by its ending) CSV file.

    Args:
        path: the file.
        limit: most requests; the first ones.
        speed: arrivals come so many times as fast.
        concurrency: closed loop, see `Trace`.

    Raises:
        ConfigError: not readable, or a line lacks a column.
    """
    if not 0 < speed < float("inf"):
        raise ConfigError(f"--speed must be above 0, got {speed:g}")
    if concurrency is not None and concurrency < 1:
        raise ConfigError(f"--concurrency must be at least 1, got {concurrency}")
    limit = MAX_REQUESTS if limit is None else limit
    arrivals: list[float] = []
    inputs: list[int] = []
    outputs: list[int] = []
    names: dict[str, int] = {}
    tenant: list[int] = []
    priority: list[int] = []
    segments: list[list[tuple[str, int]]] = []
    for number, row in enumerate(_rows(path), 1):
        if number > limit:
            break
        try:
            arrivals.append(_arrival(row))
            inputs.append(int(_first(row, _INPUT)))
            outputs.append(int(_first(row, _OUTPUT)))
            tenant.append(names.setdefault(str(row.get("tenant") or ""), len(names)))
            priority.append(int(row.get("priority") or 0))
            segments.append(_segments(row, inputs[-1]))
            if inputs[-1] < 1 or outputs[-1] < 1:
                raise ValueError("lengths must be at least 1")
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}, request {number}: {error}") from None
    if not arrivals:
        raise ConfigError(f"{path} has no requests")
    times = np.array(arrivals)
    order = np.argsort(times, kind="stable")
    trace = Trace(
        arrival_s=(times[order] - times.min()) / speed,
        input_len=np.array(inputs)[order],
        output_len=np.array(outputs)[order],
        tenant=np.array(tenant)[order],
        priority=np.array(priority)[order],
        tenants=list(names),
        concurrency=concurrency,
    )
    if any(segments):
        numbers: dict[str, int] = {}
        base = trace.shared_token
        trace.prefixes = [
            tuple((base + numbers.setdefault(n, len(numbers)), length) for n, length in segments[i])
            for i in order
        ]
    return trace


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                yield from csv.DictReader(file)
                return
            decoder = msgspec.json.Decoder(dict[str, Any])
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield decoder.decode(line)
                    except msgspec.DecodeError as error:
                        raise ConfigError(f"{path}, line {number}: {error}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise KeyError(f"none of the columns {', '.join(names)}")


def _arrival(row: dict[str, Any]) -> float:
    """Seconds."""
    if "arrival_s" in row:
        time = float(row["arrival_s"])
    elif "timestamp" in row:
        time = float(row["timestamp"]) / 1000
    else:
        text = str(_first(row, ("TIMESTAMP", "arrived_at", "arrival_s")))
        try:
            time = float(text)
        except ValueError:
            # Some have seven digits of a second's fraction, which `fromisoformat` may refuse.
            whole, _, fraction = text.partition(".")
            digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
            zone = fraction[len(digits) :]
            moment = datetime.fromisoformat(whole + zone)
            time = moment.timestamp() + float(f"0.{digits or 0}")
    if not abs(time) < float("inf"):
        raise ValueError("the time of arrival is not finite")
    return time


def _segments(row: dict[str, Any], input_len: int) -> list[tuple[str, int]]:
    """Leading segments by name, within the prompt."""
    if row.get("hash_ids"):
        named = [(f"hash {number}", _HASH_TOKENS) for number in row["hash_ids"]]
    else:
        named = [(f"name {name}", int(length)) for name, length in row.get("prefix") or ()]
    segments: list[tuple[str, int]] = []
    for name, length in named:
        if length < 1:
            raise ValueError(f"the prefix {name} has {length} tokens")
        length = min(length, input_len)
        if length:
            segments.append((name, length))
        input_len -= length
    return segments
