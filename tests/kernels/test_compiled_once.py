"""What changes from step to step must not reach the compiler."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.helper import DEVICE, HAS_GPU, random, require_triton

require_triton()

from octavo.kernels import activation, norm, rotary, sampling  # noqa: E402
from octavo.kernels import prepare as preparing  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="no CUDA device"),
]

DIM, HEADS, KV_HEADS, PAGE, WIDTH, VOCAB = 64, 6, 2, 16, 8, 5008


def ints(n: int, shift: int) -> torch.Tensor:
    """[n] zeros that begin `shift` places after an aligned address."""
    return torch.zeros(n + shift, dtype=torch.int32, device=DEVICE)[shift:]


def step(t: int, shift: int) -> None:
    """All kernels, over t tokens."""
    dtype = torch.bfloat16
    x, residual = random((t, 512), dtype, 0), random((t, 512), dtype, 1)
    norm.rms_norm(x, x[0], 1e-6, 0.0)
    norm.add_rms_norm(x, residual, x[0], 1e-6, 0.0)
    activation.gated(x, "silu")
    heads = HEADS + 2 * KV_HEADS
    tables = ints(WIDTH, 0).view(1, WIDTH)
    rotary.rotate_and_write(
        random((t, heads * DIM), dtype, 2),
        torch.zeros(WIDTH * PAGE, DIM, device=DEVICE),
        ints(t, shift),
        ints(t, shift),
        tables,
        torch.zeros(1, 2, KV_HEADS, PAGE, DIM, dtype=dtype, device=DEVICE),
        HEADS,
        KV_HEADS,
    )
    updates = torch.zeros(2, t + shift, dtype=torch.int32, device=DEVICE)[:, shift : shift + 1]
    preparing.prepare(
        ints(t, shift),
        ints(t, shift),
        ints(9, 0),
        ints(t, shift),
        updates if shift else None,
        tables,
    )
    floats = torch.zeros(t + shift, device=DEVICE)[shift:]
    logits = random((t, VOCAB), dtype, 3)
    sampling.sample_plain(logits, floats, floats, ints(t, shift), ints(9, 0), ints(t, shift))


def num_compiled() -> int:
    kernels = (
        norm.norm_kernel,
        activation.gated_kernel,
        rotary.rotate_kernel,
        preparing.prepare_kernel,
        sampling.split_kernel,
        sampling.choose_kernel,
    )
    return sum(len(kernel.device_caches[0][0]) for kernel in kernels)


def test_steps_of_any_size_share_what_the_first_one_compiled() -> None:
    before = num_compiled()
    step(3, 0)
    after = num_compiled()
    assert after - before == 7  # the norm, with and without the residual
    for t, shift in ((1, 0), (1, 1), (16, 3), (17, 4), (300, 5)):
        step(t, shift)
    assert num_compiled() == after
