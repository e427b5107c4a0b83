"""A forward pass by torch with the kernels' arithmetic, against the same layers run one by one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch

from octavo.layers.mlp import MLP
from octavo.runner.forward import LayerByLayer
from octavo.runner.reference import ReferenceForward
from tests.runner.test_native_plan import FAMILIES, folders, make_batch, make_runner  # noqa: F401

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_it_computes_what_the_layers_do(name: str, folders: dict[str, Path]) -> None:  # noqa: F811
    runner = make_runner(folders[name], attention_backend="reference")
    forward = runner._steps._forward  # type: ignore[union-attr]
    assert isinstance(forward, ReferenceForward)
    layers = LayerByLayer(runner.model)
    for seqs in ([(5, 0), (70, 0), (1, 0)], [(1, 5), (1, 70), (30, 1)], [(1, 6), (1, 71), (1, 31)]):
        batch = make_batch(runner, seqs)
        got, hidden = forward.logits(batch), forward.hidden(batch)
        torch.testing.assert_close(got, layers.logits(batch), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(hidden, layers.hidden(batch), rtol=1e-4, atol=1e-4)
        assert torch.equal(forward.largest(batch), got.argmax(dim=-1))


@torch.inference_mode()
def test_what_layers_do_not_tell_is_run_as_it_is(
    folders: dict[str, Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    usual = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x: usual(self, torch.tanh(x)))
    caplog.set_level(logging.INFO, logger="octavo")
    runner = make_runner(folders["Llama"], attention_backend="reference")
    batch = make_batch(runner, [(5, 0)])
    forward = runner._steps._forward  # type: ignore[union-attr]
    want = LayerByLayer(runner.model).logits(batch)
    for _ in range(2):
        assert torch.equal(forward.logits(batch), want)
    lines = [record.message for record in caplog.records if "layer by layer" in record.message]
    assert lines == ["torch runs the model layer by layer: a layer calls tanh"]
