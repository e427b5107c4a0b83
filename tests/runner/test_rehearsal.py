"""Steps launch nothing but what was rehearsed, so no step ever waits for a compiler.

The keys under which Triton keeps compiled kernels are compared; nothing is compiled for it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from octavo.attention.interface import AttentionSpec
from octavo.attention.torch_cpu import TorchAttention
from octavo.models.base import BuildContext
from octavo.models.registry import find_model_class
from octavo.quant.unquantized import Unquantized
from octavo.runner.rehearsal import NUM_TOKENS, rehearse_steps
from tests.kernels.offline import run_offline

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TinyLlama

SCRIPT = """
import importlib, json, sys
import torch, triton
import numpy as np

# Nothing runs: what kernels would have written must at least be no wild index.
torch.empty, torch.empty_like = torch.zeros, torch.zeros_like
torch.Tensor.new_empty = torch.Tensor.new_zeros
torch.nn.functional.linear = lambda x, weight, bias=None: x.new_zeros(len(x), len(weight))

from tests.kernels.offline import use_offline_driver

use_offline_driver()

from octavo.attention.interface import AttentionSpec
from dataclasses import replace

from octavo.attention import hopper_decodes, hopper_prompts
from octavo.attention.triton_paged import TritonAttention, default_tunings
from octavo.attention.tunings import Sharing
from octavo.kernels import skinny_linear
from octavo.layers.mlp import MLP
from octavo.layers.norm import RMSNorm
from octavo.models.base import BuildContext
from octavo.models.registry import find_model_class
from octavo.quant import unquantized
from octavo.runner.graphs import Graph, GraphMaker
from octavo.runner.queued_steps import QueuedSteps, graph_shapes
from octavo.runner.rehearsal import NUM_TOKENS, rehearse_rare, rehearse_steps
from octavo.runner.rows import RowTable
from octavo.runner.sampler import SamplerRows
from octavo.types import RowInit, SamplingParams, StepPlan

keys = set()

def note(*, key, fn, **_):
    keys.add(f"{fn.name}{key}")
    return True  # neither compile nor launch

triton.knobs.runtime.jit_cache_hook = note
unquantized._skinny_kernels = lambda device: skinny_linear

def capture(self, compute, set_up):
    before, launched = set(keys), []
    for run in (set_up, compute):
        keys.clear()
        output = run()
        launched.append(set(keys))
    # The first of all also launches, for nothing, what other steps will need.
    assert launched[1] <= launched[0], "a graph is not set up for all that it launches"
    keys.update(before)
    return Graph(output, lambda: output.copy_(compute()))

GraphMaker.capture = capture

DTYPE, MAX_LEN, NUM_ROWS, PAGE = torch.bfloat16, 512, 130, 16
KINDS = [
    SamplingParams(temperature=0.0), SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.0, top_p=0.9), SamplingParams(temperature=1.0, top_k=5),
    SamplingParams(temperature=1.0, min_p=0.1, logprobs=2),
    SamplingParams(temperature=0.0, min_tokens=2, prompt_logprobs=3),
    SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.1, logit_bias={3: 1.0}),
    SamplingParams(temperature=0.0, allowed_token_ids=[4, 5], presence_penalty=1.0, logprobs=1),
]

WORDS = [[1, 1], [2]]

def run(steps, lengths, params):
    rows = list(range(len(lengths)))
    steps.launch(StepPlan(
        0, [RowInit(row, [1] * n, n, params, row, [7], WORDS if params.presence_penalty else [])
            for row, n in enumerate(lengths)], rows,
        [0] * len(rows), lengths, [True] * len(rows), [[0] * (-(-n // PAGE)) for n in lengths],
    )).result()
    steps.launch(StepPlan(
        1, [], rows, lengths, [1] * len(rows), [True] * len(rows), [[0] for _ in rows],
    )).result()

def compare(architecture, config):
    linear = unquantized.Unquantized(DTYPE)
    model = find_model_class(architecture)(config, BuildContext(DTYPE, linear, MAX_LEN))
    for module in model.modules():
        for kind, name in ((RMSNorm, "norm"), (MLP, "activation")):
            if isinstance(module, kind):
                module._kernels = importlib.import_module(f"octavo.kernels.{name}")
    shape = model.shape
    spec = AttentionSpec(
        num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads, head_dim=shape.head_dim,
        dtype=DTYPE, device=torch.device("cpu"), block_size=PAGE,
        windows=frozenset(shape.windows), soft_cap=shape.soft_cap,
    )
    tunings = None
    if shape.head_dim == 64:  # as on a Hopper GPU, but that prompts are long sooner
        prompts = replace(hopper_prompts.TUNINGS, min_mean_keys=170)
        tunings = replace(
            default_tunings(64, DTYPE), prompts=prompts, decodes=hopper_decodes.TUNING
        )
    keys.clear()
    backend = TritonAttention(tunings, num_sms=132)
    logits = rehearse_steps(model, backend, spec, MAX_LEN)
    plain = set(keys)
    rehearse_rare(model, backend, spec, MAX_LEN, logits)
    rehearsed = set(keys)
    keys.clear()
    backend = TritonAttention(tunings, num_sms=132, sharing=Sharing(4, 256, 0))
    shapes = graph_shapes(NUM_ROWS, 256)
    caches = [backend.allocate(spec, 8) for _ in range(shape.num_layers)]
    table, sampler = RowTable(NUM_ROWS, MAX_LEN, PAGE), SamplerRows(NUM_ROWS)
    steps = QueuedSteps(model, backend, spec, caches, table, sampler, shapes)
    steps.capture(shapes)
    for i, num in enumerate([1, 5, 17, 64, 129]):
        run(steps, [1 + (7 * row + i) % 3 for row in range(num)], KINDS[i % 2])
    launched_plain = set(keys)
    steps = QueuedSteps(model, backend, spec, caches, table, sampler, shapes)
    for captured in (False, True):
        if captured:
            steps.capture(shapes)
        for i, num in enumerate([1, 2, 5, 16, 17, 33, 64, 65, 129]):
            run(steps, [1 + (7 * row + i) % 3 for row in range(num)], KINDS[i % len(KINDS)])
        for length in (17, 63, 300):
            run(steps, [length, 1, 9], KINDS[0])
        run(steps, [300] * 5, KINDS[0])  # decodes with the same blocks
    return sorted(plain), sorted(launched_plain), sorted(rehearsed), sorted(keys)

bounds = {most for table in skinny_linear.TABLE.values() for most, _ in table}
bounds |= {most for most, _, _ in skinny_linear.GENERAL}
bounds |= {room for room in skinny_linear._ROOM if room <= skinny_linear.MAX_ROWS}
assert bounds <= set(NUM_TOKENS), "products change with sizes that are not rehearsed"
print(json.dumps({name: compare(name, config) for name, config in json.loads(sys.argv[1]).items()}))
"""

LLAMA = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 14336, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}  # fmt: skip
MODELS = {
    "LlamaForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA | {"tie_word_embeddings": True, "head_dim": 64},
    "Gemma3ForCausalLM": LLAMA
    | {
        "query_pre_attn_scalar": 16, "sliding_window": 20, "sliding_window_pattern": 2,
        "rope_local_base_freq": 10000.0, "rope_theta": 1e6,
        "hidden_activation": "gelu_pytorch_tanh",
        # More layers than kinds of them: a rehearsal takes one of each.
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}  # fmt: skip


KERNELS = {
    "norm_kernel", "gated_kernel", "rotate_kernel", "attend_kernel", "merge_kernel", "gemv_kernel",
    "dot_kernel", "prepare_kernel", "split_kernel", "choose_kernel", "copy_kernel", "add_kernel",
    "remember_kernel", "ban_kernel", "count_kernel", "penalise_kernel",
}  # fmt: skip


def test_steps_launch_what_was_rehearsed(tmp_path: Path) -> None:
    done = run_offline(SCRIPT, tmp_path, json.dumps(MODELS))
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.keys() == MODELS.keys()
    for plain, launched_plain, rehearsed, launched in said.values():
        # What a start waits for is what graphs and requests for a temperature need.
        assert not set(launched_plain) - set(plain)
        assert not {"copy_kernel", "survey_kernel"} & {key.split("[")[0] for key in plain}
        assert {key.split("[")[0] for key in launched} >= KERNELS
        assert not set(launched) - set(rehearsed)
        # Nothing for its own sake either: each costs a second of some core.
        assert not set(rehearsed) - set(launched)
    plain, _, rehearsed, _ = said["Qwen3ForCausalLM"]
    # Nobody waits for the one for long prompts, which takes longest to compile.
    assert sum(key.startswith("attend_prompts") for key in plain) == 1
    assert sum(key.startswith("attend_prompts") for key in rehearsed) == 2


@pytest.mark.parametrize("architecture", MODELS)
def test_a_rehearsal_takes_one_layer_of_each_kind(architecture: str) -> None:
    """On any device: without kernels to compile it still runs the model's own forward."""
    config = MODELS[architecture] | {"intermediate_size": 64, "num_hidden_layers": 4}
    context = BuildContext(torch.float32, Unquantized(torch.float32), 64)
    model = find_model_class(architecture)(config, context)
    shape = model.shape
    spec = AttentionSpec(
        num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads, head_dim=shape.head_dim,
        dtype=torch.float32, device=torch.device("cpu"), block_size=16,
        windows=frozenset(shape.windows), soft_cap=shape.soft_cap,
    )  # fmt: skip
    calls: list[nn.Module] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda layer, _: calls.append(layer))
    rehearse_steps(model, TorchAttention(), spec, 64)
    num_kinds = len(set(shape.windows))
    assert len(set(calls)) == num_kinds
    assert len(calls) == num_kinds * (1 + len(NUM_TOKENS))
    assert len(model.model.layers) == 4


ON_THE_DEVICE = """
import json, logging, random, sys

logging.basicConfig(level="INFO", format="%(message)s")
from octavo import LLM, SamplingParams

llm = LLM(sys.argv[1], skip_tokenizer_init=True, dtype="bfloat16", max_num_batched_tokens=256,
          max_num_seqs=80, gpu_memory_utilization=0.5)
draw = random.Random(0)
for num in (1, 3, 70, 100):
    prompts = [{"prompt_token_ids": [draw.randrange(300) for _ in range(draw.randint(1, 150))]}
               for _ in range(num)]
    params = [SamplingParams(temperature=draw.choice([0.0, 1.0]), top_p=draw.choice([1.0, 0.9]),
                             repetition_penalty=draw.choice([1.0, 1.3]),
                             logit_bias=draw.choice([{}, {5: 1.0}]),
                             allowed_token_ids=draw.choice([None, None, list(range(9, 99))]),
                             prompt_logprobs=draw.choice([None, None, None, 2]),
                             max_tokens=draw.randint(1, 20)) for _ in prompts]
    llm.generate(prompts, params)
print(json.dumps([llm.info.compilation, llm.info.memory, llm.info.startup_s]))
llm.close()
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_device_no_step_waits_for_a_compiler(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    done = run_offline(ON_THE_DEVICE, tmp_path, str(tiny_llama()))
    # But for those that are still being compiled, which are waited for by the second.
    assert "a step waited for" not in done.stderr, done.stderr
    assert "compiled in threads" not in done.stderr, done.stderr
    compilation, memory, parts = json.loads(done.stdout.splitlines()[-1])
    assert compilation["num_kernels"] >= 10
    # Nothing is cached, and whatever processes compiled was found.
    assert compilation["num_by_processes"] == compilation["num_kernels"]
    assert compilation["work_s"] < compilation["processes_s"] / 2
    assert 0 < compilation["waited_s"] <= compilation["elapsed_s"] < parts["compile"] + 60
    total = memory.pop("total")
    assert sum(memory.values()) == total
    assert min(memory.values()) >= 0
    assert "memory: " in done.stderr
