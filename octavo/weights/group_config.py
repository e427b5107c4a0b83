"""`quantization_config` of a Hugging Face folder: which layers hold groups of integers, and how.

Knows configuration and names of layers, no tensors. The keys are those that AutoGPTQ and GPTQModel
(`gptq`), AutoAWQ (`awq`) and the compressed-tensors package write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from octavo.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

Layout = Literal["gptq", "awq", "packed", "plain"]
"""How codes lie in tensors; see `group_codes`."""


@dataclass(frozen=True, slots=True)
class GroupScheme:
    """How one layer's weight is stored.

    Attributes:
        layout: of its tensors.
        bits: of a code, 4 or 8.
        group_size: columns of a row that share a scale; 0: all of them.
        zero_offset: what is added to stored zero points.
    """

    layout: Layout
    bits: int
    group_size: int
    zero_offset: int = 0


class GroupConfig:
    """Schemes of a checkpoint's layers.

    Args:
        method: `quant_method`, for messages.
        groups: schemes, and which layers each is for: exact names, classes (`Linear`), or `re:` and
            an expression that matches a name from its beginning.
        ignore: layers that are not quantized, in the same words.
    """

    def __init__(
        self, method: str, groups: list[tuple[GroupScheme, list[str]]], ignore: list[str]
    ) -> None:
        self.method = method
        self._groups = groups
        self._ignore = ignore

    @property
    def layouts(self) -> set[Layout]:
        """Of all schemes."""
        return {scheme.layout for scheme, _ in self._groups}

    def scheme_of(self, layer: str) -> GroupScheme:
        """The scheme of a layer, by its name in the checkpoint.

        Raises:
            UnsupportedModelError: there is none.
        """
        if any(_matches(layer, pattern, is_class=False) for pattern in self._ignore):
            raise UnsupportedModelError(
                f"quantization_config.ignore names {layer}, but its weight is quantized"
            )
        for is_class in (False, True):  # a layer's own name says more than its class
            for scheme, targets in self._groups:
                if any(_matches(layer, target, is_class=is_class) for target in targets):
                    return scheme
        raise UnsupportedModelError(
            f"no targets in quantization_config.config_groups fit {layer}, but its weight is "
            "quantized"
        )


def read_group_config(config: Mapping[str, Any]) -> GroupConfig | None:
    """What config.json says of integers in groups; None: it says nothing of any quantization.

    Raises:
        UnsupportedModelError: a quantization that is not read; the message is one line and names
            the key and what works.
    """
    found = config.get("quantization_config") or config.get("compression_config")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise UnsupportedModelError("quantization_config is no JSON object")
    method = found.get("quant_method")
    if method not in _READERS:
        raise _refusal("quant_method", method, "awq, compressed-tensors, gptq")
    return _READERS[method](found)


def _read_gptq(config: dict[str, Any]) -> GroupConfig:
    bits = _one_of("bits", config.get("bits"), (4, 8))
    form = config.get("checkpoint_format") or config.get("format") or "gptq"
    _one_of("checkpoint_format", form, ("gptq", "gptq_v2"))
    if config.get("is_marlin_format"):
        raise _refusal("is_marlin_format", True, "false")
    _one_of("pack_dtype", config.get("pack_dtype", "int32"), ("int32",))
    dynamic = config.get("dynamic") or {}
    if not isinstance(dynamic, dict) or any(not key.startswith("-:") for key in dynamic):
        raise _refusal("dynamic", dynamic, "rules that begin with '-:'")
    offset = 1 if form == "gptq" else 0
    size = _group_size("group_size", config.get("group_size", -1))
    return GroupConfig("gptq", [(GroupScheme("gptq", bits, size, offset), ["Linear"])], [])


def _read_awq(config: dict[str, Any]) -> GroupConfig:
    bits = _one_of("bits", config.get("bits", config.get("w_bit")), (4,))
    key = next((k for k in ("version", "checkpoint_format", "format") if config.get(k)), "version")
    version = config.get(key, "gemm")
    _one_of(key, version.lower() if isinstance(version, str) else version, ("gemm",))
    size = _group_size("group_size", config.get("group_size", config.get("q_group_size", -1)))
    return GroupConfig("awq", [(GroupScheme("awq", bits, size), ["Linear"])], [])


def _read_compressed_tensors(config: dict[str, Any]) -> GroupConfig:
    for key in ("kv_cache_scheme", "transform_config"):
        if config.get(key):
            raise _refusal(key, config[key], "null")
    sparsity = config.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format") not in (None, "dense"):
        raise _refusal("sparsity_config", sparsity, "the format dense")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise _refusal("config_groups", groups, "an object of groups")
    schemes = []
    for name, group in groups.items():
        key = f"config_groups.{name}"
        if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
            raise _refusal(f"{key}.weights", group, "an object")
        form = group.get("format") or config.get("format")
        schemes.append(
            (_scheme(key, group, form), _strings(f"{key}.targets", group.get("targets")))
        )
    return GroupConfig(
        "compressed-tensors", schemes, _strings("ignore", config.get("ignore") or [])
    )


def _scheme(key: str, group: dict[str, Any], form: Any) -> GroupScheme:
    """Of a group of compressed-tensors, `key` in the configuration."""
    weights = group["weights"]
    packed = _one_of("format", form, ("pack-quantized", "int-quantized", "naive-quantized"))
    is_packed = packed == "pack-quantized"
    _one_of(f"{key}.weights.type", weights.get("type", "int"), ("int",))
    allowed = (4, 8) if is_packed else (8,)
    bits = _one_of(f"{key}.weights.num_bits", weights.get("num_bits"), allowed)
    size = weights.get("group_size")
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    _one_of(f"{key}.weights.strategy", strategy, ("group", "channel", "tensor"))
    inputs = group.get("input_activations")
    if inputs:
        where = f"{key}.input_activations"
        if not isinstance(inputs, dict):
            raise _refusal(where, inputs, "null or an object")
        # Dynamic scales are not stored; our kernels find their own, as exact ones.
        _one_of(f"{where}.type", inputs.get("type", "int"), ("int",))
        _one_of(f"{where}.num_bits", inputs.get("num_bits"), (8,))
        _one_of(f"{where}.dynamic", inputs.get("dynamic"), (True,))
    if group.get("output_activations"):
        raise _refusal(f"{key}.output_activations", group["output_activations"], "null")
    columns = _group_size(f"{key}.weights.group_size", size) if strategy == "group" else 0
    return GroupScheme("packed" if is_packed else "plain", bits, columns)


_READERS = {
    "gptq": _read_gptq,
    "awq": _read_awq,
    "compressed-tensors": _read_compressed_tensors,
}


def _matches(layer: str, pattern: str, *, is_class: bool) -> bool:
    if is_class:
        return pattern == "Linear"
    if not pattern.startswith("re:"):
        return layer == pattern
    try:
        return re.match(pattern.removeprefix("re:"), layer) is not None
    except re.error as error:
        raise UnsupportedModelError(
            f"quantization_config: {pattern!r} is no regular expression: {error}"
        ) from None


def _one_of(key: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise _refusal(key, value, ", ".join(str(choice).lower() for choice in allowed))
    return value


def _group_size(key: str, value: Any) -> int:
    if type(value) is not int or (value < 1 and value != -1):
        raise _refusal(key, value, "a number of columns, or -1 for whole rows")
    return max(value, 0)


def _strings(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _refusal(key, value, "a list of names")
    return value


def _refusal(key: str, value: Any, works: str) -> UnsupportedModelError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return UnsupportedModelError(
        f"quantization_config.{key} is {shown}, which is not supported (what works: {works})"
    )
