from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from benchmarks.gpu.shapes import SHAPES, main, make_shape, model_folder
from octavo.text.tokenizer import load_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_reads_the_folder_as_we_do(name: str, tmp_path: Path) -> None:
    folder = make_shape(name, tmp_path / "shape")
    config = AutoConfig.from_pretrained(folder)
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_folder(folder)
    assert len(theirs) == ours.vocab_size == config.vocab_size
    assert theirs.eos_token_id == ours.eos_token_id == config.eos_token_id
    assert theirs.bos_token_id == config.bos_token_id
    ids = ours.encode("Hello, world: 1 2 3 é", add_special_tokens=False)
    assert ids == theirs("Hello, world: 1 2 3 é", add_special_tokens=False).input_ids
    assert ours.decode(ids) == "Hello, world: 1 2 3 é"


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-3.1-8b", 8.030261248), ("qwen3-0.6b", 0.596049920)]
)
def test_the_shapes_have_the_published_numbers_of_parameters(
    name: str, billions: float, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = AutoConfig.from_pretrained(make_shape(name, tmp_path))
    automodel: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = automodel.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == round(billions * 1e9)


def test_the_command_writes_what_the_context_manager_takes_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tiny-qwen3", "--out", str(tmp_path / "q")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "q")
    with model_folder("tiny-qwen3") as folder:
        written = json.loads((folder / "config.json").read_text())
    assert written == json.loads((tmp_path / "q" / "config.json").read_text())
    assert not folder.exists()
    with model_folder(str(tmp_path / "q")) as folder:
        assert folder == tmp_path / "q"
    assert folder.exists()
