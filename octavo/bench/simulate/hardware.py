"""Model shapes and host profiles that the simulator knows by name; devices are the runner's.

Pure values. Of devices that were not measured, a simulation is a forecast and not a check.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.runner.devices import WeightDType


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes beside the device cost, in microseconds.

    The engine's loop overlaps with the device where it plans ahead. The front end is a queue of its
    own behind it: it takes requests in and carries tokens out, one thing at a time, and may fall
    behind.

    Attributes:
        step_us, step_sequence_us: the engine's loop, per step and per sequence in it.
        launch_layer_us: launching a layer's kernels where no graph covers the step.
        request_us: front end, per request that comes in.
        output_us, token_us: front end, per step's outputs and per token among them.
        latency_us: fixed way of a request and its first token, there and back.
    """

    name: str
    step_us: float = 0.0
    step_sequence_us: float = 0.0
    launch_layer_us: float = 0.0
    request_us: float = 0.0
    output_us: float = 0.0
    token_us: float = 0.0
    latency_us: float = 0.0


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """A dense decoder by its dimensions, as its `config.json` gives them."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tie_embeddings: bool
    max_model_len: int

    @property
    def layer_params(self) -> int:
        """Weights of one layer's matmuls."""
        attention = self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.hidden_size * (attention + 3 * self.intermediate_size)

    @property
    def head_params(self) -> int:
        """Weights of the output layer."""
        return self.hidden_size * self.vocab_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all layers, at 16 bits."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def weight_bytes(self, dtype: WeightDType) -> int:
        """All weights in memory; under fp8 embeddings and head stay at 16 bits."""
        embeddings = self.head_params * (1 if self.tie_embeddings else 2)
        per_weight = 1 if dtype == "fp8" else 2
        return self.num_layers * self.layer_params * per_weight + 2 * embeddings

    @classmethod
    def from_config(cls, path: Path) -> ModelShape:
        """From a Hugging Face `config.json`, or the folder that has one.

        Raises:
            ConfigError: not readable, or not a dense decoder with a gated MLP.
        """
        path = path / "config.json" if path.is_dir() else path
        try:
            config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"cannot read a model's shape from {path}: {error}") from None
        config = config.get("text_config", config)
        if any("expert" in key and config[key] for key in config):
            raise ConfigError(f"{path}: a mixture of experts, which the cost model does not know")
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            return cls(
                name=path.absolute().parent.name,
                hidden_size=hidden,
                intermediate_size=int(config["intermediate_size"]),
                num_layers=int(config["num_hidden_layers"]),
                num_heads=heads,
                num_kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                vocab_size=int(config["vocab_size"]),
                tie_embeddings=bool(config.get("tie_word_embeddings", False)),
                max_model_len=int(config["max_position_embeddings"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} lacks a dimension, or has a strange one: {error}") from None


def _shape(name: str, *dims: int, tie: bool, max_model_len: int) -> ModelShape:
    hidden, inter, layers, heads, kv_heads, head_dim, vocab = dims
    return ModelShape(
        name=name,
        hidden_size=hidden,
        intermediate_size=inter,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        tie_embeddings=tie,
        max_model_len=max_model_len,
    )


MODELS = {
    shape.name: shape
    for shape in (
        _shape(
            "llama-3.1-8b", 4096, 14336, 32, 32, 8, 128, 128256, tie=False, max_model_len=131072
        ),
        _shape(
            "llama-3.1-70b", 8192, 28672, 80, 64, 8, 128, 128256, tie=False, max_model_len=131072
        ),
        _shape("qwen3-0.6b", 1024, 3072, 28, 16, 8, 128, 151936, tie=True, max_model_len=40960),
        _shape("smollm2-135m", 576, 1536, 30, 9, 3, 64, 49152, tie=True, max_model_len=8192),
    )
}


# Of vLLM 0.24 on 16 cores, from one small model and from streams over HTTP, where its host shows.
HOSTS = {
    host.name: host
    for host in (
        Host(name="ideal"),
        Host(
            name="vllm-offline",
            step_us=2550,
            step_sequence_us=4,
            launch_layer_us=150,
            request_us=400,
            output_us=500,
            token_us=27,
            latency_us=4000,
        ),
        Host(
            name="vllm-http",
            step_us=2550,
            step_sequence_us=4,
            launch_layer_us=150,
            request_us=1000,
            output_us=500,
            token_us=100,
            latency_us=8000,
        ),
    )
}


def find_model(name: str) -> ModelShape:
    """A built-in shape, or that of a `config.json` or a folder with one.

    Raises:
        ConfigError: neither.
    """
    if name in MODELS:
        return MODELS[name]
    path = Path(name)
    if not path.exists():
        raise ConfigError(f"{name!r} is neither a file nor one of {', '.join(sorted(MODELS))}")
    return ModelShape.from_config(path)
