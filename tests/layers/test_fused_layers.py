"""Layers by fused kernels against the same layers by torch's operators.

Without a GPU the kernels run in Triton's interpreter, if the package is installed.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from octavo.attention.interface import AttentionSpec, BatchLayout
from octavo.attention.torch_cpu import TorchAttention
from octavo.attention.triton_paged import TritonAttention
from octavo.attention.tunings import Tuning, Tunings
from octavo.layers.batch import ForwardBatch
from octavo.layers.mlp import MLP
from octavo.layers.norm import RMSNorm
from octavo.models.base import BuildContext
from octavo.models.registry import find_model_class
from octavo.quant.unquantized import Unquantized
from octavo.runner.loader import draw_weights

if TYPE_CHECKING:
    from octavo.attention.interface import AttentionBackend
    from octavo.models.base import CausalModel

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if HAS_GPU else "cpu")
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def kernels(name: str) -> Any:
    # Older interpreters fail under numpy 2.4, which no longer makes numbers of arrays.
    pytest.importorskip("triton", minversion="3.6" if HAS_GPU else "3.8")
    return importlib.import_module(f"octavo.kernels.{name}")


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_norm_and_sum(offset: float, dtype: torch.dtype) -> None:
    with torch.device(DEVICE):
        plain, fused = (RMSNorm(48, 1e-5, dtype, offset=offset) for _ in range(2))
    plain._kernels, fused._kernels = None, kernels("norm")
    for norm in (plain, fused):
        norm.weight.copy_(random(48, dtype=dtype, seed=1))
    x, residual = random(5, 48, dtype=dtype, seed=2), random(5, 48, dtype=dtype, seed=3)
    assert close(fused(x), plain(x), dtype)
    results = []
    for norm in (plain, fused):
        memory = residual.clone()
        normed, total = norm.add(x, memory)
        assert total is memory
        # The interpreter cuts bfloat16's last bits off where hardware rounds.
        exact = HAS_GPU or dtype == torch.float32 or norm is plain
        assert torch.equal(total, residual + x) if exact else close(total, residual + x, dtype)
        assert torch.equal(norm.add(x, None)[1], x)
        results.append(normed)
    assert close(results[1], results[0], dtype)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_mlp(kind: str, dtype: torch.dtype) -> None:
    with torch.device(DEVICE):
        mlp = MLP(32, 80, kind, Unquantized(dtype), dtype)
    for layer in (mlp.gate_up_proj, mlp.down_proj):
        layer.params["weight"].copy_(random(*layer.params["weight"].shape, dtype=dtype) / 6)
    x = random(7, 32, dtype=dtype, seed=4)
    mlp._kernels = None
    expected = mlp(x)
    mlp._kernels = kernels("activation")
    assert close(mlp(x), expected, dtype)


CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"attention_bias": True},
    "Qwen3ForCausalLM": {},
    "Gemma3ForCausalLM": {"sliding_window": 6, "sliding_window_pattern": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_the_same_by_either_way(family: str) -> None:
    """Prefills and a second step that reads the first one's cache; every logit."""
    for name in ("norm", "activation", "rotary"):
        kernels(name)
    dtype = torch.float32
    config = CONFIG | FAMILIES[family]
    with torch.device(DEVICE):
        context = BuildContext(dtype, Unquantized(dtype), max_len=128)
        model = find_model_class(family)(config, context)
    draw_weights(model, DEVICE)
    for seed, norm in enumerate(m for m in model.modules() if isinstance(m, RMSNorm)):
        norm.weight += 0.3 * random(*norm.weight.shape, dtype=dtype, seed=seed)
    tuning = Tuning(16, 16, 4, 2, programs_per_sm=1, min_chunk=16)
    expected = run(model, TorchAttention())
    switch(model, fused=True)
    got = run(model, TritonAttention(Tunings(tuning, tuning), num_sms=4))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def switch(model: CausalModel, *, fused: bool) -> None:
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module._kernels = kernels("norm") if fused else None
        elif isinstance(module, MLP):
            module._kernels = kernels("activation") if fused else None


@torch.inference_mode()
def run(model: CausalModel, backend: AttentionBackend) -> list[torch.Tensor]:
    """Logits of all tokens of two steps of three sequences."""
    shape = model.shape
    spec = AttentionSpec(
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        dtype=torch.float32,
        device=DEVICE,
        block_size=4,
        windows=frozenset(shape.windows),
    )
    caches = [backend.allocate(spec, 16) for _ in range(shape.num_layers)]
    tables = np.array([[3, 0, 7, 8], [5, 1, 2, 9], [4, 6, 10, 11]], np.int64)
    logits = []
    context = np.zeros(3, np.int64)
    for lens in ([9, 1, 4], [1, 3, 1]):
        starts = np.concatenate([[0], np.cumsum(lens)]).astype(np.int64)
        positions = np.concatenate(
            [np.arange(c, c + n) for c, n in zip(context, lens, strict=True)]
        )
        layout = BatchLayout(starts, context.copy(), tables)
        ids = torch.arange(int(starts[-1]), dtype=torch.int32, device=DEVICE) * 7 % 64
        batch = ForwardBatch(
            token_ids=ids,
            positions=torch.from_numpy(positions.astype(np.int32)).to(DEVICE),
            logit_indices=None,
            backend=backend,
            meta=backend.plan(spec, layout),
            kv_caches=caches,
        )
        logits.append(model(batch))
        context += np.asarray(lens)
    last = [model_logits.shape[0] for model_logits in logits]
    assert last == [14, 5]
    return logits


def close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    error = (got.double() - expected.double()).abs().max() / expected.double().abs().max()
    return got.dtype == expected.dtype == dtype and error.item() < TOLERANCE[dtype]
