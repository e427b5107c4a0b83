"""`quantization_config`: what is read out of it, and what is refused, in one line with its key."""

from __future__ import annotations

from typing import Any

import pytest
from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

from octavo.errors import UnsupportedModelError
from octavo.weights.group_config import GroupScheme, read_group_config

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}
AWQ = {
    "quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True,
    "modules_to_not_convert": ["lm_head"],
}  # fmt: skip
LAYER = "model.layers.0.mlp.up_proj"


def compressed(preset: str, form: str, **options: Any) -> dict[str, Any]:
    """As the package writes it."""
    scheme = preset_name_to_scheme(preset, ["Linear"])
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=form, ignore=["lm_head", "re:.*gate$"]
    )
    dumped: dict[str, Any] = config.model_dump(mode="json")
    return dumped | options


def read(config: dict[str, Any]) -> Any:
    return read_group_config({"quantization_config": config})


@pytest.mark.parametrize(
    ("config", "scheme"),
    [
        (GPTQ, GroupScheme("gptq", 4, 128, 1)),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, GroupScheme("gptq", 4, 128, 0)),
        (GPTQ | {"bits": 8, "group_size": -1}, GroupScheme("gptq", 8, 0, 1)),
        (GPTQ | {"dynamic": {"-:.*down.*": {}}}, GroupScheme("gptq", 4, 128, 1)),
        (AWQ, GroupScheme("awq", 4, 64)),
        (AWQ | {"version": "GEMM"}, GroupScheme("awq", 4, 64)),
        (compressed("W4A16", "pack-quantized"), GroupScheme("packed", 4, 128)),
        (compressed("W4A16_ASYM", "pack-quantized"), GroupScheme("packed", 4, 128)),
        (compressed("W8A16", "pack-quantized"), GroupScheme("packed", 8, 128)),
        (compressed("W8A8", "int-quantized"), GroupScheme("plain", 8, 0)),
        (compressed("W4A8", "pack-quantized"), GroupScheme("packed", 4, 128)),
    ],
)  # fmt: skip
def test_what_is_read(config: dict[str, Any], scheme: GroupScheme) -> None:
    assert read(config).scheme_of(LAYER) == scheme


def test_no_quantization() -> None:
    assert read_group_config({"hidden_size": 3}) is None
    assert read_group_config({"quantization_config": None}) is None
    assert read_group_config({"quantization_config": {}}) is None


def test_a_name_says_more_than_a_class_and_ignored_layers_have_no_scheme() -> None:
    config = compressed("W4A16", "pack-quantized")
    other = compressed("W8A8", "int-quantized")["config_groups"]["group_0"]
    config["config_groups"]["group_1"] = other | {
        "targets": [r"re:.*\.down_proj", LAYER], "format": "int-quantized"
    }  # fmt: skip
    groups = read(config)
    assert groups.layouts == {"packed", "plain"}
    assert groups.scheme_of(LAYER).layout == "plain"
    assert groups.scheme_of("model.layers.1.mlp.down_proj").layout == "plain"
    assert groups.scheme_of("model.layers.1.mlp.up_proj").layout == "packed"
    for name in ("lm_head", "model.layers.0.mlp.gate"):
        with pytest.raises(UnsupportedModelError, match=f"ignore names {name}, but"):
            groups.scheme_of(name)
    config["config_groups"] = {"group_1": config["config_groups"]["group_1"]}
    with pytest.raises(UnsupportedModelError, match=r"no targets in .* fit model\.layers\.1\.mlp"):
        read(config).scheme_of("model.layers.1.mlp.up_proj")


def nested(config: dict[str, Any], part: str, **changes: Any) -> dict[str, Any]:
    group = config["config_groups"]["group_0"]
    group[part] = (group[part] or {}) | changes
    return config


@pytest.mark.parametrize(
    ("config", "key", "works"),
    [
        ({"quant_method": "fp8"}, "quant_method is 'fp8'", "awq, compressed-tensors, gptq"),
        ({"bits": 4}, "quant_method is None", "awq, compressed-tensors, gptq"),
        (GPTQ | {"bits": 3}, "bits is 3", "4, 8"),
        (GPTQ | {"bits": True}, "bits is True", "4, 8"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'", "gptq, gptq_v2"),
        (GPTQ | {"is_marlin_format": True}, "is_marlin_format is True", "false"),
        (GPTQ | {"dynamic": {"+:.*": {"bits": 8}}}, "dynamic is", "'-:'"),
        (GPTQ | {"group_size": 0}, "group_size is 0", "-1 for whole rows"),
        (GPTQ | {"group_size": "128"}, "group_size is '128'", "-1 for whole rows"),
        (GPTQ | {"pack_dtype": "int64"}, "pack_dtype is 'int64'", "int32"),
        (AWQ | {"bits": 8}, "bits is 8", "4"),
        (AWQ | {"version": "gemv"}, "version is 'gemv'", "gemm"),
        (compressed("FP8_DYNAMIC", "float-quantized"), "format is 'float-quantized'",
         "pack-quantized, int-quantized, naive-quantized"),
        (compressed("W4A16", "int-quantized"), "group_0.weights.num_bits is 4", "8"),
        (compressed("W4A16", "marlin-24"), "format is 'marlin-24'", "pack-quantized"),
        (compressed("FP8_DYNAMIC", "naive-quantized"), "group_0.weights.type is 'float'", "int"),
        (nested(compressed("W4A16", "pack-quantized"), "weights", num_bits=3),
         "group_0.weights.num_bits is 3", "4, 8"),
        (nested(compressed("W4A16", "pack-quantized"), "weights", strategy="block"),
         "group_0.weights.strategy is 'block'", "group, channel, tensor"),
        (nested(compressed("W8A8", "int-quantized"), "input_activations", dynamic=False),
         "group_0.input_activations.dynamic is False", "true"),
        (nested(compressed("W8A8", "int-quantized"), "output_activations", num_bits=8),
         "group_0.output_activations is", "null"),
        (compressed("W4A16", "pack-quantized", kv_cache_scheme={"num_bits": 8}),
         "kv_cache_scheme is", "null"),
        (compressed("W4A16", "pack-quantized", transform_config={"config_groups": {"a": {}}}),
         "transform_config is", "null"),
        (compressed("W4A16", "pack-quantized", sparsity_config={"format": "sparse-bitmask"}),
         "sparsity_config is", "dense"),
        (compressed("W4A16", "pack-quantized", config_groups={}), "config_groups is {}", "groups"),
        (compressed("W4A16", "pack-quantized", config_groups={"g": {"targets": ["Linear"]}}),
         "config_groups.g.weights is", "an object"),
        (nested(compressed("W4A16", "pack-quantized"), "weights") | {"ignore": "lm_head"},
         "ignore is 'lm_head'", "a list of names"),
    ],
)  # fmt: skip
def test_what_is_refused(config: dict[str, Any], key: str, works: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read(config)
    message = str(caught.value)
    assert message.startswith("quantization_config.")
    assert key in message
    assert works in message
    assert "\n" not in message


def test_a_pattern_that_is_none() -> None:
    config = compressed("W4A16", "pack-quantized", ignore=["re:("])
    with pytest.raises(UnsupportedModelError, match=r"'re:\(' is no regular expression"):
        read(config).scheme_of(LAYER)


def test_no_object() -> None:
    with pytest.raises(UnsupportedModelError, match="is no JSON object"):
        read_group_config({"quantization_config": [1]})
