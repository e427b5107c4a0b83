"""Tables of angles that grow, against transformers' rotary embedding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from octavo.layers import rotary
from octavo.layers.rotary import Rotary

CPU = torch.device("cpu")
MAX_LEN, HEAD_DIM = 1300, 16


def make() -> Rotary:
    return Rotary(HEAD_DIM, MAX_LEN, 10_000.0, None)


def batch_of(positions: list[int]) -> Any:
    return SimpleNamespace(
        positions=torch.tensor(positions), backend=SimpleNamespace(fuses_rotary=False)
    )


def test_angles_equal_transformers_in_any_order_of_positions() -> None:
    config = transformers.LlamaConfig(
        hidden_size=HEAD_DIM, num_attention_heads=1, max_position_embeddings=MAX_LEN
    )
    theirs, ours = LlamaRotaryEmbedding(config), make()
    for positions in ([0, 3], [7, 600, 2], [MAX_LEN - 1, 0], [511, 512, 513]):
        rope = ours(batch_of(positions))
        assert rope is not None
        want = theirs(torch.zeros(1, dtype=torch.float32), torch.tensor([positions]))
        for got, whole in zip(rope, want, strict=True):
            torch.testing.assert_close(got[:, 0], whole[0, :, : HEAD_DIM // 2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 512, 5000])
def test_however_it_grows_the_table_is_the_same(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make().table(CPU)
    monkeypatch.setattr(rotary, "FIRST_ROWS", chunk)
    monkeypatch.setattr(rotary, "CHUNK_ELEMENTS", 8 * chunk)
    growing = make()
    table = growing.open_table(CPU)
    assert not table.any()
    for num_positions in (1, 2, 900, 30, MAX_LEN):
        growing.extend(num_positions)
        assert torch.equal(table[:num_positions], whole[:num_positions])
    assert growing.table(CPU) is table


def test_a_position_beyond_the_table_is_an_error() -> None:
    with pytest.raises(IndexError):
        make()(batch_of([MAX_LEN]))
