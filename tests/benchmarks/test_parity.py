from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks.gpu import parity

if TYPE_CHECKING:
    from pathlib import Path

DRY = ["--device", "cpu", "--backends", "torch", "--num-prompts", "10", "--output-len", "4"]


def test_a_dry_run_of_the_quick_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([*DRY, "--quick", "--models", "qwen3, tied"]) == 0
    _, *lines, verdict = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 5
    for way in ("batch of 64", parity.HITS, "graphs off", "chunks of 96", "bfloat16"):
        assert any(way in line for line in lines), way
    assert verdict.startswith("all 5 runs equal")


def test_a_model_with_other_weights_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Other(parity.Reference):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            with torch.no_grad():
                self.model.lm_head.weight[:500] *= 1.5

    monkeypatch.setattr(parity, "Reference", Other)
    monkeypatch.setattr(parity, "QUICK_WAYS", ("graphs off",))
    assert parity.main([*DRY, "--quick", "--models", "llama"]) == 1
    assert capsys.readouterr().out.count("FAIL") >= 2


@pytest.mark.parametrize("name", parity.MODELS)
def test_every_checkpoint_is_made_of_the_family_that_its_name_says(
    name: str, tmp_path: Path
) -> None:
    import json

    path = parity.make(name, parity.MODELS[name], tmp_path)
    (architecture,) = json.loads((path / "config.json").read_text())["architectures"]
    assert architecture.lower().startswith(name.partition(",")[0])


def test_no_such_model_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([*DRY, "--models", "nothing"]) == 1
