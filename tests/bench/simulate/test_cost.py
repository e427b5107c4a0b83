"""The cost model against sums done by hand, and its table against what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from octavo.bench.simulate.cost import CostModel
from octavo.bench.simulate.hardware import HOSTS, MODELS, ModelShape, find_model
from octavo.errors import ConfigError
from octavo.runner.devices import DEVICES, Device
from scripts import simulator_table
from tests.bench.simulate.helpers import cost

if TYPE_CHECKING:
    from pathlib import Path

# One matmul kernel of no latency on a device of round numbers: what is left is the roofline.
ROUND = Device(
    name="round", memory_gb=10, read_gb_s=1000, gemm_read_gb_s=1000,
    gemm_tflops={"bf16": 100, "fp8": 200}, attention_tflops=100, attention_read_gb_s=1000,
    l2_mb=1, l2_gb_s=2000, gemm_us=0, layer_us=0, sequence_layer_us=0,
)  # fmt: skip
LLAMA = MODELS["llama-3.1-8b"]


def decode_s(model: CostModel, batch: int, context: int, shared: int = 0) -> float:
    return model.device_s(batch, batch, batch, batch * context, shared, [])


def test_parameters_are_those_of_the_published_models() -> None:
    billions = {name: shape.weight_bytes("bf16") / 2e9 for name, shape in MODELS.items()}
    assert billions == pytest.approx(
        {"llama-3.1-8b": 8.03, "llama-3.1-70b": 70.6, "qwen3-0.6b": 0.596, "smollm2-135m": 0.1345},
        rel=0.01,
    )
    assert LLAMA.kv_bytes_per_token == 131072


def test_one_sequence_is_bound_by_reading_weights() -> None:
    model = CostModel(ROUND, HOSTS["ideal"], LLAMA)
    read = LLAMA.weight_bytes("bf16") - 2 * LLAMA.head_params  # the embedding is not read
    assert decode_s(model, 1, 1) == pytest.approx(read / 1e12, rel=0.002)
    halved = CostModel(ROUND, HOSTS["ideal"], LLAMA, "fp8")
    body = LLAMA.num_layers * LLAMA.layer_params
    assert decode_s(halved, 1, 1) == pytest.approx((read - body) / 1e12, rel=0.002)


def test_a_long_prefill_is_bound_by_arithmetic() -> None:
    model = CostModel(ROUND, HOSTS["ideal"], LLAMA)
    n = 8192
    matmuls = 2 * LLAMA.num_layers * LLAMA.layer_params * n
    attention = 4 * 32 * 4096 * n * (n + 1) / 2
    moved = 32 * 2 * (8 * 4096 + 2 * 48 * 128 + 3 * 14336) * n
    seconds = (matmuls + attention) / 1e14 + moved / 1e12
    assert model.device_s(n, 0, 1, 0, 0, [(0, n)]) == pytest.approx(seconds, rel=0.001)
    halves = model.device_s(n // 2, 0, 1, 0, 0, [(0, n // 2)])
    halves += model.device_s(n // 2, 0, 1, 0, 0, [(n // 2, n // 2)])
    assert halves == pytest.approx(seconds, rel=0.001), "a chunked prompt costs the same"


def test_context_costs_its_kv_and_a_shared_one_less() -> None:
    model = CostModel(ROUND, HOSTS["ideal"], LLAMA)
    base = decode_s(model, 64, 1)
    assert decode_s(model, 64, 1001) - base == pytest.approx(64 * 1000 * 131072 / 1e12, rel=1e-6)
    assert decode_s(model, 64, 1001, shared=64_000) - base == pytest.approx(
        64 * 1000 * 131072 / 2e12, rel=1e-6
    )
    assert model.fits_l2(200)
    assert not model.fits_l2(300), "1 MB holds 244 tokens of a layer"


def test_more_of_anything_never_takes_less() -> None:
    model = cost()
    steps = [decode_s(model, batch, 500) for batch in range(1, 1025)]
    assert steps == sorted(steps)


def test_the_host_shows_where_it_takes_longer() -> None:
    host = msgspec.structs.replace(HOSTS["ideal"], step_us=5000, launch_layer_us=1000)
    model = CostModel(DEVICES["h100"], host, LLAMA)
    assert model.step_s(0.001, 1, 1) == 0.005
    assert model.step_s(0.020, 1, 1) == 0.020
    assert model.step_s(0.020, 1, 1, overlaps=False) == 0.025
    assert model.step_s(0.001, 513, 1) == pytest.approx(0.005 + 0.032)


def test_blocks_that_memory_has_room_for() -> None:
    # vLLM 0.24, same parameters: 28,594 and 41,289; and 31,894 at fp8.
    assert cost().num_blocks(16, 0.92, 16384) == pytest.approx(28594, rel=0.02)
    assert cost("qwen3-0.6b").num_blocks(16, 0.92, 16384) == pytest.approx(41289, rel=0.02)
    fp8 = CostModel(DEVICES["h100"], HOSTS["ideal"], LLAMA, "fp8")
    assert fp8.num_blocks(16, 0.92, 16384) == pytest.approx(31894, rel=0.02)
    with pytest.raises(ConfigError, match=r"141\.\d GB of weights"):
        cost("llama-3.1-70b").num_blocks(16, 0.92, 8192)


@pytest.mark.parametrize("workload", simulator_table.workloads(), ids=lambda w: w.name)
def test_throughput_is_what_was_measured(workload: simulator_table.Workload) -> None:
    measured, simulated = simulator_table.rates(workload)
    assert simulated == pytest.approx(measured, rel=simulator_table.TOLERANCE)


def test_the_documents_table_is_what_comes_out() -> None:
    document = simulator_table.TARGET.read_text()
    assert document == simulator_table.with_table(document), "run scripts/simulator_table.py"


def test_a_shape_from_a_config(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100,
        "num_attention_heads": 4, "max_position_embeddings": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    expected = ModelShape(
        name="tiny", hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4,
        num_kv_heads=4, head_dim=16, vocab_size=100, tie_embeddings=True, max_model_len=512,
    )  # fmt: skip
    assert find_model(str(folder)) == find_model(str(folder / "config.json")) == expected
    (folder / "config.json").write_bytes(msgspec.json.encode({**config, "num_experts": 8}))
    with pytest.raises(ConfigError, match="mixture of experts"):
        find_model(str(folder))
    (folder / "config.json").write_bytes(b'{"hidden_size": 64}')
    with pytest.raises(ConfigError, match="lacks a dimension"):
        find_model(str(folder))
    with pytest.raises(ConfigError, match="neither a file nor one of"):
        find_model("llama-9")
