"""The flags that say how to load a model, shared by `serve`, `run`, `chat` and `bench offline`.

Their help is `EngineConfig`'s docstring and their defaults are its defaults, so that the three
cannot drift apart. Knows nothing of what the engine does with them.
"""

from __future__ import annotations

import argparse
import inspect
import re
from typing import Any, get_args

import msgspec

from octavo.config import (
    DType,
    EngineConfig,
    KVCacheDType,
    LoadFormat,
    PoolingChoice,
    TaskChoice,
    parse_bytes,
)
from octavo.types import SchedulingPolicy

_TYPES: dict[str, dict[str, Any]] = {
    "task": {"choices": get_args(TaskChoice)},
    "pooling_type": {"choices": get_args(PoolingChoice)},
    "load_format": {"choices": get_args(LoadFormat)},
    "dtype": {"choices": get_args(DType)},
    "device": {"metavar": "DEVICE"},
    "max_model_len": {"type": int, "metavar": "TOKENS"},
    "max_num_seqs": {"type": int, "metavar": "N"},
    "max_num_batched_tokens": {"type": int, "metavar": "TOKENS"},
    "block_size": {"type": int, "metavar": "TOKENS"},
    "gpu_memory_utilization": {"type": float, "metavar": "SHARE"},
    "scheduling_policy": {"choices": get_args(SchedulingPolicy)},
    "async_scheduling": {"action": argparse.BooleanOptionalAction},
    "enforce_eager": {"action": "store_true"},
    "enable_prefix_caching": {"action": argparse.BooleanOptionalAction},
    "kv_cache_memory": {"type": parse_bytes, "metavar": "SIZE"},
    "kv_cache_dtype": {"choices": get_args(KVCacheDType)},
    "attention_backend": {"metavar": "NAME"},
    "num_threads": {"type": int, "metavar": "N"},
    "seed": {"type": int, "metavar": "N"},
    "metering": {"action": argparse.BooleanOptionalAction},
}
"""Fields of `EngineConfig` that are flags, and how argparse reads each."""


POOLING_FLAGS = ("task", "pooling_type")
"""Fields that commands which only generate have no flags for."""


def attribute_docs(cls: type) -> dict[str, str]:
    """The `Attributes:` section of a class's docstring: attribute name to its text, on one line."""
    section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    docs: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if not line.startswith("    "):
            break
        head = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if head:
            names = head[1].split(", ")
            docs.update(dict.fromkeys(names, head[2]))
        else:
            docs.update({name: f"{docs[name]} {line.strip()}" for name in names})
    return docs


def add_engine_flags(parser: argparse.ArgumentParser, *, skip: tuple[str, ...] = ()) -> None:
    """Add a flag for each field of `EngineConfig`, in a group of its own.

    Args:
        parser: gets the flags.
        skip: fields that the command has another flag for.
    """
    group = parser.add_argument_group("engine")
    docs = attribute_docs(EngineConfig)
    defaults = {field.name: field.default for field in msgspec.structs.fields(EngineConfig)}
    for name, how in _TYPES.items():
        if name in skip:
            continue
        text = docs.get(name, "").rstrip(".").replace("None:", "default:")
        if defaults[name] is not None:
            default = defaults[name] if defaults[name] is not True else "on"
            text += f" (default: {default})"
        action = group.add_argument(f"--{name.replace('_', '-')}", default=defaults[name], **how)
        action.help = text.replace("%", "%%")  # set late: some actions append their own default


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `EngineConfig` that the flags gave, without `model`."""
    return {name: getattr(args, name) for name in _TYPES if hasattr(args, name)}


def has_engine_flags(args: argparse.Namespace) -> bool:
    """Whether any of the flags has another value than its default."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(EngineConfig)}
    return any(value != defaults[name] for name, value in engine_options(args).items())


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The engine's configuration, with `args.model` resolved to a path on this machine.

    Raises:
        ConfigError: a flag is out of range.
        ModelNotFoundError: no such model, or not pulled yet; the message says what to run.
    """
    from octavo.weights import store

    EngineConfig(model="", **engine_options(args))  # a wrong flag shows before a missing model
    return EngineConfig(model=str(store.resolve(args.model)), **engine_options(args))
