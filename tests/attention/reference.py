"""Attention in float64, sequence by sequence, and random steps to compare with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.attention.interface import AttentionSpec, BatchLayout, LayerAttention

if TYPE_CHECKING:
    from octavo.attention.interface import AttentionBackend


@dataclass(frozen=True)
class Case:
    """A step: `seqs` are pairs of new tokens and tokens already in the cache.

    `shared` are groups of sequences, and with how many tokens all of a group begin; they share the
    full blocks of these.
    """

    seqs: tuple[tuple[int, int], ...]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    block_size: int = 16
    windows: tuple[int | None, ...] = (None,)
    soft_cap: float | None = None
    seed: int = 0
    shared: tuple[tuple[tuple[int, ...], int], ...] = ()


def layout_of(case: Case, rng: np.random.Generator) -> tuple[BatchLayout, int]:
    """Blocks in random order, with unused ones among them, and their number in all."""
    query = np.array([new for new, _ in case.seqs], np.int64)
    context = np.array([old for _, old in case.seqs], np.int64)
    counts = -(-(query + context) // case.block_size)
    num_blocks = int(counts.sum()) + 3
    free = rng.permutation(num_blocks)
    tables = rng.integers(0, 2**30, (len(query), int(counts.max())))  # past the last one: unread
    for seq, count in enumerate(counts):
        tables[seq, :count], free = free[:count], free[count:]
    for members, length in case.shared:
        num_shared = length // case.block_size
        tables[list(members), :num_shared] = tables[members[0], :num_shared]
    return BatchLayout(np.concatenate([[0], np.cumsum(query)]), context, tables), num_blocks


def attend(
    q_thd: torch.Tensor,
    k_skd: torch.Tensor,
    v_skd: torch.Tensor,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> torch.Tensor:
    """The last t tokens of one sequence of s tokens, in float64."""
    q, k, v = q_thd.double(), k_skd.double(), v_skd.double()
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = torch.einsum("thd,shd->hts", q, k) * scale
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    query_pos = torch.arange(k.shape[0], device=q.device)[-q.shape[0] :, None]
    key_pos = torch.arange(k.shape[0], device=q.device)[None]
    hidden = key_pos > query_pos
    if window is not None:
        hidden |= key_pos <= query_pos - window
    weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v)


def relative_error(
    backend: AttentionBackend,
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    unwritten: float = torch.nan,
    cache_dtype: torch.dtype | None = None,
) -> float:
    """Largest ||out - reference|| / ||reference|| over the windows; checks the cache as well.

    Two steps are run: one that fills the cache with what is in it before, and then the case. What
    nobody wrote is `unwritten`, and must not show.
    """
    rng = np.random.default_rng(case.seed)
    generator = torch.Generator().manual_seed(case.seed)
    layout, num_blocks = layout_of(case, rng)
    spec = AttentionSpec(
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        head_dim=case.head_dim,
        dtype=dtype,
        device=device,
        block_size=case.block_size,
        windows=frozenset(case.windows),
        soft_cap=case.soft_cap,
        cache_dtype=cache_dtype,
    )

    def random(tokens: int, heads: int) -> torch.Tensor:
        x = torch.randn(tokens, heads, case.head_dim, generator=generator)
        return x.to(device, dtype)

    def stored(tokens: int) -> torch.Tensor:
        return random(tokens, case.num_kv_heads).to(spec.stored_dtype).to(dtype)

    keys = [stored(new + old) for new, old in case.seqs]
    values = [stored(new + old) for new, old in case.seqs]
    num_written = sum(new + old for new, old in case.seqs)
    for members, length in case.shared:
        end = length // case.block_size * case.block_size
        num_written -= end * (len(members) - 1)
        for seq in members:
            assert end <= case.seqs[seq][1]
            keys[seq][:end], values[seq][:end] = keys[members[0]][:end], values[members[0]][:end]
    cache = backend.allocate(spec, num_blocks)
    cache.fill_(unwritten)
    scale = case.head_dim**-0.5 * 2

    filled = [i for i, (_, old) in enumerate(case.seqs) if old]
    if filled:
        lens = [case.seqs[i][1] for i in filled]
        before = BatchLayout(
            np.concatenate([[0], np.cumsum(lens)]),
            np.zeros(len(filled), np.int64),
            layout.block_tables[filled],
        )
        _step(backend, spec, before, LayerAttention(scale, case.windows[0]), cache, [
            random(sum(lens), case.num_heads),
            torch.cat([keys[i][:n] for i, n in zip(filled, lens, strict=True)]),
            torch.cat([values[i][:n] for i, n in zip(filled, lens, strict=True)]),
        ])  # fmt: skip

    q = random(int(layout.query_starts[-1]), case.num_heads)
    k = torch.cat([x[old:] for x, (_, old) in zip(keys, case.seqs, strict=True)])
    v = torch.cat([x[old:] for x, (_, old) in zip(values, case.seqs, strict=True)])
    worst = 0.0
    for window in case.windows:
        out = _step(backend, spec, layout, LayerAttention(scale, window), cache, [q, k, v])
        expected = torch.cat([
            attend(x, keys[i], values[i], scale, window, case.soft_cap)
            for i, x in enumerate(q.split(layout.query_lens.tolist()))
        ])  # fmt: skip
        error = ((out.double() - expected).norm() / expected.norm()).item()
        worst = max(worst, error) if error == error else float("inf")
    written = 2 * num_written * case.num_kv_heads * case.head_dim
    cache = cache.float()
    changed = cache.isfinite() & (cache != unwritten)
    assert int(changed.sum()) == written, "a slot of nobody was written, or one was not"
    return worst


def _step(
    backend: AttentionBackend,
    spec: AttentionSpec,
    layout: BatchLayout,
    layer: LayerAttention,
    cache: torch.Tensor,
    qkv: list[torch.Tensor],
) -> Any:
    """One layer of one step; queries, keys and values lie as a packed projection leaves them."""
    heads = spec.num_heads
    packed = torch.cat(qkv, 1)
    kv_end = heads + spec.num_kv_heads
    return backend.forward(
        layer, packed[:, :heads], packed[:, heads:kv_end], packed[:, kv_end:],
        cache, backend.plan(spec, layout),
    )  # fmt: skip
