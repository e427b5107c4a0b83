from __future__ import annotations

import argparse

import msgspec
import pytest

from octavo.cli.engine_flags import add_engine_flags, attribute_docs, engine_config, engine_options
from octavo.config import EngineConfig, ServerConfig
from octavo.errors import ConfigError, ModelNotFoundError


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    add_engine_flags(parser)
    return parser.parse_args(words)


def test_defaults_are_those_of_the_configuration(model: str) -> None:
    assert engine_config(parse(model)) == EngineConfig(model=model)


def test_every_field_is_a_flag(model: str) -> None:
    words = {
        "load_format": "dummy",
        "dtype": "float16",
        "device": "cpu",
        "max_model_len": "100",
        "max_num_seqs": "7",
        "max_num_batched_tokens": "64",
        "block_size": "32",
        "gpu_memory_utilization": "0.5",
        "kv_cache_memory": "1.5GiB",
        "kv_cache_dtype": "fp8",
        "attention_backend": "torch",
        "num_threads": "2",
        "seed": "5",
        "scheduling_policy": "fair",
        "task": "embed",
        "pooling_type": "last",
    }
    names = {field.name for field in msgspec.structs.fields(EngineConfig)} - {"model"}
    switches = {"enable_prefix_caching", "async_scheduling", "enforce_eager", "metering"}
    assert set(words) | switches == names
    flags = ["--no-enable-prefix-caching", "--async-scheduling", "--enforce-eager"]
    flags += ["--no-metering"]
    flags += [part for k, v in words.items() for part in (f"--{k.replace('_', '-')}", v)]
    config = engine_config(parse(model, *flags))
    numbers = {"max_model_len": 100, "max_num_seqs": 7, "max_num_batched_tokens": 64}
    numbers |= {"block_size": 32, "kv_cache_memory": 3 * 2**29, "num_threads": 2, "seed": 5}
    expected = words | numbers
    expected |= {"gpu_memory_utilization": 0.5}
    expected |= {"enable_prefix_caching": False, "async_scheduling": True, "enforce_eager": True}
    expected |= {"metering": False}
    assert config == EngineConfig(model=model, **expected)
    assert engine_options(parse(model, *flags)) == expected


def test_the_help_is_the_docstring() -> None:
    docs = attribute_docs(EngineConfig)
    names = [field.name for field in msgspec.structs.fields(EngineConfig)]
    assert list(docs) == names
    assert docs["kv_cache_memory"].endswith("(on a CPU at most 4 GiB).")
    assert attribute_docs(ServerConfig)["port"] == attribute_docs(ServerConfig)["host"]
    parser = argparse.ArgumentParser(prog="x")
    add_engine_flags(parser)
    text = " ".join(parser.format_help().split())
    assert "tokens per KV block (default: 16)" in text
    assert "most tokens of prompt and output together; default: what the model allows" in text
    assert "None" not in text
    assert text.count("reuse the KV blocks of prompts that begin alike (default: on)") == 1
    assert (
        text.count("(default:")
        == sum(field.default is not None for field in msgspec.structs.fields(EngineConfig)) - 1
    )  # the model has none


def test_errors_show_the_flag_before_the_model(model: str) -> None:
    with pytest.raises(ConfigError, match="--block-size must be at least 1"):
        engine_config(parse("nowhere", "--block-size", "0"))
    with pytest.raises(ModelNotFoundError, match="octavo pull smollm2"):
        engine_config(parse("smollm2"))
    with pytest.raises(ConfigError, match="not a size"):
        parse(model, "--kv-cache-memory", "lots")


def test_flags_can_be_left_out() -> None:
    parser = argparse.ArgumentParser()
    add_engine_flags(parser, skip=("seed",))
    assert "seed" not in engine_options(parser.parse_args([]))
