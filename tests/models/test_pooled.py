"""Encoders and decoders as embedders: the vectors are those of `transformers`, without padding.

Checkpoints are tiny and random. Texts of all lengths go through one ragged step.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSequenceClassification

from octavo.config import EngineConfig
from octavo.errors import CheckpointError, ConfigError, StartupError, UnsupportedModelError
from octavo.runner.pooling import PoolingRunner
from octavo.runner.tasks import is_pooled
from octavo.types import PoolingParams, PoolingPlan
from octavo.weights.open import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import TinyLlama

LENGTHS = [5, 1, 17, 5, 40, 2, 17, 5]
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a random model of a class of transformers; the same call, the same folder."""
    made: dict[str, Path] = {}

    def make(kind: str, files: dict[str, Any] | None = None, **config: Any) -> Path:
        key = json.dumps([kind, files, config], sort_keys=True)
        if key not in made:
            made[key] = folder = tmp_path_factory.mktemp("encoder")
            model_class = getattr(transformers, kind)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = model_class(model_class.config_class(**(SMALL | config))).float()
                for name, tensor in model.named_parameters():
                    if name.endswith("bias") or "LayerNorm" in name:
                        tensor.data += torch.randn_like(tensor) * 0.2
            model.save_pretrained(folder)
            for name, content in (files or {}).items():
                path = folder / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(content))
        return made[key]

    return make


def texts(lengths: list[int] = LENGTHS) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, 96, length).tolist() for length in lengths]


def runner_of(path: Path, **options: Any) -> PoolingRunner:
    config = EngineConfig(model=str(path), num_threads=1, **options)
    with closing(open_checkpoint(path)) as checkpoint:
        assert is_pooled(config, checkpoint)
        return PoolingRunner(config, checkpoint)


def vectors_of(
    runner: PoolingRunner, inputs: list[list[int]], params: list[PoolingParams] | None = None
) -> list[np.ndarray]:
    task = runner.info.tasks[0]
    plan = PoolingPlan(0, inputs, params or [PoolingParams(task=task) for _ in inputs])
    return [np.frombuffer(vector, "<f4") for vector in runner.execute(plan).vectors]


@torch.inference_mode()
def reference(path: Path, inputs: list[list[int]], kind: str) -> list[np.ndarray]:
    """Each text alone through `transformers`, pooled, not normalized."""
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    result = []
    for ids in inputs:
        states = model(torch.tensor([ids])).last_hidden_state[0]
        pooled = {"cls": states[0], "last": states[-1], "mean": states.mean(0)}[kind]
        result.append(pooled.numpy())
    return result


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("BertModel", {}),
        ("BertModel", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
        ("BertForMaskedLM", {"hidden_act": "relu"}),  # tensors begin with `bert.`
        ("XLMRobertaModel", {"type_vocab_size": 1, "pad_token_id": 1}),
        ("RobertaForMaskedLM", {"type_vocab_size": 1, "pad_token_id": 1}),
    ],
)
def test_encoders(
    save: Callable[..., Path], kind: str, config: dict[str, Any], pooling: Any
) -> None:
    path = save(kind, **config)
    runner = runner_of(path, pooling_type=pooling)
    plain = [PoolingParams(is_activated=False)] * len(LENGTHS)
    expected = reference(path, texts(), pooling)
    assert_same(vectors_of(runner, texts(), plain), expected)
    # By default embeddings have length 1.
    unit = [vector / np.linalg.norm(vector) for vector in expected]
    assert_same(vectors_of(runner, texts()), unit)
    offset = 2 if "oberta" in kind else 0
    assert runner.info.max_model_len == 64 - offset
    assert runner.info.tasks == ("embed",)
    longest = texts([runner.info.max_model_len])
    assert_same(vectors_of(runner, longest, plain[:1]), reference(path, longest, pooling))


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("BertForSequenceClassification", {}),
        ("XLMRobertaForSequenceClassification", {"type_vocab_size": 1, "pad_token_id": 1}),
    ],
)
def test_classifiers_and_cross_encoders(
    save: Callable[..., Path], kind: str, config: dict[str, Any], num_labels: int
) -> None:
    path = save(kind, num_labels=num_labels, **config)
    runner = runner_of(path)
    has_types = kind.startswith("Bert")
    assert runner.info.tasks == (("classify", "score") if num_labels == 1 else ("classify",))
    assert runner.info.pooling is not None
    assert runner.info.pooling.labels == [f"LABEL_{index}" for index in range(num_labels)]
    assert runner.info.pooling.has_token_types == has_types
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    seconds = [length // 2 if has_types and length > 1 else None for length in LENGTHS]
    logits = []
    with torch.inference_mode():
        for ids, second in zip(texts(), seconds, strict=True):
            types = [int(second is not None and i >= second) for i in range(len(ids))]
            out = model(torch.tensor([ids]), token_type_ids=torch.tensor([types]))
            logits.append(out.logits[0])
    for activated in (None, False):
        params = [
            PoolingParams(task="classify", second_start=second, is_activated=activated)
            for second in seconds
        ]
        expected = logits
        if activated is None:
            expected = [x.sigmoid() if num_labels == 1 else x.softmax(-1) for x in logits]
        assert_same(vectors_of(runner, texts(), params), [x.numpy() for x in expected])


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_a_decoder_embeds_with_its_last_token(tiny_llama: TinyLlama, pooling: Any) -> None:
    for tied in (True, False):
        path = tiny_llama(tied=tied)
        runner = runner_of(path, task="embed", pooling_type=pooling)
        assert runner.info.pooling is not None
        kind = runner.info.pooling.pooling_type
        assert kind == ("last" if pooling == "auto" else "mean")
        plain = [PoolingParams(is_activated=False)] * len(LENGTHS)
        assert_same(vectors_of(runner, texts(), plain), reference(path, texts(), kind))


@pytest.mark.parametrize("kind", ["Qwen3Model", "Qwen2Model", "MistralModel", "LlamaModel"])
def test_decoders_that_were_saved_without_an_output_layer(
    save: Callable[..., Path], kind: str
) -> None:
    window = {"sliding_window": 6} if kind == "MistralModel" else {}
    path = save(kind, num_key_value_heads=2, head_dim=8, **window)
    plain = [PoolingParams(is_activated=False)] * len(LENGTHS)
    assert_same(vectors_of(runner_of(path), texts(), plain), reference(path, texts(), "last"))


def test_matryoshka_vectors_are_cut_and_normalized_again(save: Callable[..., Path]) -> None:
    path = save("BertModel", matryoshka_dimensions=[8, 16])
    runner = runner_of(path, pooling_type="mean")
    assert runner.info.pooling is not None
    assert runner.info.pooling.is_matryoshka
    assert runner.info.pooling.matryoshka_dimensions == [8, 16]
    inputs = texts([4, 9, 4])
    wanted = [
        PoolingParams(dimensions=8),
        PoolingParams(),
        PoolingParams(dimensions=16, is_activated=False),
    ]
    first, second, third = (torch.tensor(v) for v in reference(path, inputs, "mean"))
    expected = [F.normalize(first[:8], dim=0), F.normalize(second, dim=0), third[:16]]
    assert_same(vectors_of(runner, inputs, wanted), [x.numpy() for x in expected])


def sentence_files(mode: str, *kinds: str) -> dict[str, Any]:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "x.models.Transformer"}]
    modules += [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": f"sentence_transformers.{kind}"}
        for i, kind in enumerate(kinds, start=1)
    ]
    return {
        "modules.json": modules,
        "1_Pooling/config.json": {
            "word_embedding_dimension": 32,
            "pooling_mode_cls_token": mode == "cls",
            "pooling_mode_mean_tokens": mode == "mean",
            "pooling_mode_max_tokens": mode == "max",
        },
        "sentence_bert_config.json": {"max_seq_length": 24, "do_lower_case": True},
    }


def test_the_folder_says_how_it_pools(save: Callable[..., Path]) -> None:
    path = save("BertModel", sentence_files("mean", "Pooling"))
    runner = runner_of(path)
    info, inputs = runner.info, texts([3, 24])
    assert info.pooling is not None
    assert (info.pooling.pooling_type, info.pooling.is_normalized) == ("mean", False)
    assert info.pooling.lowercases
    assert info.max_model_len == 24
    assert_same(vectors_of(runner, inputs), reference(path, inputs, "mean"))
    assert runner_of(path, max_model_len=64).info.max_model_len == 64
    with pytest.raises(ConfigError, match="more than the model's 64"):
        runner_of(path, max_model_len=65)
    path = save("BertModel", sentence_files("cls", "Pooling", "Normalize"))
    pooling = runner_of(path).info.pooling
    assert pooling is not None
    assert (pooling.pooling_type, pooling.is_normalized) == ("cls", True)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (sentence_files("max", "Pooling"), "pooling by max_tokens is not supported"),
        (sentence_files("none", "Pooling"), "pooling by nothing"),
        (sentence_files("mean", "Pooling", "Dense"), "module Dense is not supported"),
        ({"modules.json": {"type": "x"}}, "not a list of modules"),
    ],
)
def test_files_that_ask_for_what_there_is_not(
    save: Callable[..., Path], files: dict[str, Any], match: str
) -> None:
    with pytest.raises((UnsupportedModelError, CheckpointError), match=match):
        runner_of(save("BertModel", files))


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("BertModel", {"task": "generate"}, "makes vectors, use --task embed"),
        ("BertModel", {"task": "classify"}, "has no labels, use --task embed"),
        ("BertForSequenceClassification", {"task": "embed"}, "can only classify"),
        ("BertForSequenceClassification", {"task": "score"}, "with 2 labels can only classify"),
        ("BertForSequenceClassification", {"pooling_type": "mean"}, "reads its first token"),
        ("BertModel", {"kv_cache_memory": 2**30}, "--kv-cache-memory 1073741824 has no effect"),
        ("BertModel", {"block_size": 32}, "--block-size 32 has no effect"),
        ("BertModel", {"seed": 0}, "nothing is sampled"),
        ("BertModel", {"async_scheduling": True}, "--async-scheduling True"),
    ],
)
def test_flags_that_the_model_cannot_follow(
    save: Callable[..., Path], kind: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(StartupError, match=match):
        runner_of(save(kind), **options)


def test_a_pooling_type_is_for_embeddings(tiny_llama: TinyLlama) -> None:
    path = tiny_llama()
    with closing(open_checkpoint(path)) as checkpoint:
        assert not is_pooled(EngineConfig(model=str(path)), checkpoint)
        with pytest.raises(ConfigError, match="give --task embed too"):
            is_pooled(EngineConfig(model=str(path), pooling_type="mean"), checkpoint)


def test_random_weights_stand_in(save: Callable[..., Path]) -> None:
    path = save("BertForSequenceClassification", num_labels=2)
    config = EngineConfig(model=str(path), load_format="dummy", num_threads=1)
    with closing(open_checkpoint(path, load_format="dummy")) as checkpoint:
        runner = PoolingRunner(config, checkpoint)
    (vector,) = vectors_of(runner, texts([7]))
    assert vector.sum() == pytest.approx(1.0)


def test_a_generating_command_says_where_an_encoder_belongs(save: Callable[..., Path]) -> None:
    from octavo import LLM

    with pytest.raises(UnsupportedModelError, match="BertModel makes vectors, not text"):
        LLM(str(save("BertModel")), skip_tokenizer_init=True)
    with pytest.raises(ConfigError, match="octavo serve --task embed"):
        LLM(str(save("BertModel")), task="embed")
