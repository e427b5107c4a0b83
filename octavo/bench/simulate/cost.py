"""How long a step takes: a roofline over its matmuls, its attention and its small kernels.

Knows counts of tokens, never requests or blocks. Times are seconds, sizes bytes.

A matmul takes the larger of reading its weights and computing its rows, rounded off between them
(the cubic mean of "max"), for near the ridge neither is hidden by the other. Attention adds up over
sequences: prefills are bound by arithmetic, decodes by reading KV, which a prefix that several
sequences hold is read for once from memory and otherwise from the last cache, where it fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.bench.simulate.hardware import Host, ModelShape
    from octavo.runner.devices import Device, WeightDType

_ROUNDING = 3.0
_MATMULS_PER_LAYER = 4
_SAMPLER_PASSES = 4
_BYTES_PER_LOGIT = 4
_RESERVED_LOGITS = 1024


class CostModel:
    """Seconds per step of one model on one device beside one host.

    Args:
        device, host, model: profiles.
        dtype: of the weights; activations and KV have 16 bits.
    """

    def __init__(
        self, device: Device, host: Host, model: ModelShape, dtype: WeightDType = "bf16"
    ) -> None:
        self.device, self.host, self.model, self.dtype = device, host, model, dtype
        layers = model.num_layers
        body_params = layers * model.layer_params
        weight_size = 1 if dtype == "fp8" else 2
        gemm_bytes_per_s = device.gemm_read_gb_s * 1e9
        self._body_read_s = body_params * weight_size / gemm_bytes_per_s
        self._head_read_s = 2 * model.head_params / gemm_bytes_per_s
        self._body_s_per_token = 2 * body_params / (device.gemm_tflops[dtype] * 1e12)
        self._head_s_per_row = 2 * model.head_params / (device.gemm_tflops["bf16"] * 1e12)
        self._fixed_s = (
            layers * (_MATMULS_PER_LAYER * device.gemm_us + device.layer_us) + device.gemm_us
        ) * 1e-6
        # What the small kernels read and write per token and layer: two norms with residual,
        # rotary on queries and keys, the KV write, the gated activation; quantizing under fp8.
        heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
        moved = 2 * (8 * model.hidden_size + 2 * heads + 3 * model.intermediate_size)
        if dtype == "fp8":
            quantized = 3 * model.hidden_size + model.intermediate_size
            moved += 3 * quantized
        self._moved_s_per_token = layers * moved / (device.read_gb_s * 1e9)
        self._logits_s_per_row = (
            model.vocab_size * _BYTES_PER_LOGIT * _SAMPLER_PASSES / (device.read_gb_s * 1e9)
        )
        self._sequence_s = layers * device.sequence_layer_us * 1e-6
        self._kv_s_per_token = model.kv_bytes_per_token / (device.attention_read_gb_s * 1e9)
        self._l2_s_per_token = model.kv_bytes_per_token / (device.l2_gb_s * 1e9)
        self._l2_tokens = device.l2_mb * 1e6 / (model.kv_bytes_per_token / layers)
        width = layers * model.num_heads * model.head_dim
        self._attention_s_per_pair = 4 * width / (device.attention_tflops * 1e12)
        self._launch_s = host.launch_layer_us * layers * 1e-6

    def device_s(
        self,
        num_tokens: int,
        num_samples: int,
        num_sequences: int,
        decode_context: int,
        shared_context: int,
        prefills: list[tuple[int, int]],
    ) -> float:
        """Time on the device.

        Args:
            num_tokens: rows of the matmuls.
            num_samples: rows of the output layer.
            num_sequences: sequences in the step.
            decode_context: tokens whose KV the decodes read, over all of them.
            shared_context: how many of these come from the last cache.
            prefills: (computed before, new) tokens of each sequence with more than one new.
        """
        body = _either(self._body_read_s, self._body_s_per_token * num_tokens)
        seconds = self._fixed_s + body + self._moved_s_per_token * num_tokens
        if num_samples:
            seconds += _either(self._head_read_s, self._head_s_per_row * num_samples)
            seconds += self._logits_s_per_row * num_samples
        seconds += self._sequence_s * num_sequences
        seconds += self._kv_s_per_token * (decode_context - shared_context)
        seconds += self._l2_s_per_token * shared_context
        for before, new in prefills:
            pairs = new * (before + 0.5 * (new + 1))
            seconds += max(
                self._attention_s_per_pair * pairs, self._kv_s_per_token * (before + new)
            )
        return seconds

    def step_s(
        self, device_s: float, num_tokens: int, num_sequences: int, *, overlaps: bool = True
    ) -> float:
        """Time from this step's begin to the next one's.

        The larger of the device's and the host's where the host plans ahead, else both.
        """
        host_s = (self.host.step_us + self.host.step_sequence_us * num_sequences) * 1e-6
        if num_tokens > self.device.graph_max_tokens:
            host_s += self._launch_s
        return max(device_s, host_s) if overlaps else device_s + host_s

    def fits_l2(self, num_tokens: int) -> bool:
        """Whether a layer's KV of so many tokens stays in the last cache."""
        return num_tokens <= self._l2_tokens

    def num_blocks(
        self, block_size: int, memory_utilization: float, max_num_batched_tokens: int
    ) -> int:
        """Blocks that the device's memory has room for beside weights and activations.

        Raises:
            ConfigError: not even one.
        """
        model = self.model
        widths = 3 * model.intermediate_size + 4 * model.hidden_size
        workspace = 2 * max_num_batched_tokens * widths
        workspace += _RESERVED_LOGITS * model.vocab_size * _BYTES_PER_LOGIT
        room = self.device.memory_gb * 1e9 * memory_utilization
        room -= model.weight_bytes(self.dtype) + workspace
        num_blocks = int(room // (model.kv_bytes_per_token * block_size))
        if num_blocks < 1:
            raise ConfigError(
                f"{model.name} at {self.dtype} does not fit {self.device.name}: "
                f"{model.weight_bytes(self.dtype) / 1e9:.1f} GB of weights and "
                f"{workspace / 1e9:.1f} GB of activations in "
                f"{self.device.memory_gb * memory_utilization:.1f} GB"
            )
        return num_blocks


def _either(a: float, b: float) -> float:
    return float((a**_ROUNDING + b**_ROUNDING) ** (1 / _ROUNDING))
