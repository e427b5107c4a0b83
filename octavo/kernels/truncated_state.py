"""What the kernels of `truncated_sampling.py` take and pass on: parameters, and a row's state.

State [n, `STATE`] int32. Rows that truncate nothing have number 3 alone, which is zero:

- 0, 1: keys lo and hi, the threshold is in [lo, hi);
- 2: number of groups that reach lo;
- 3: whether they are many, and top-p alone; else the list has all of them;
- 4: the largest key that min-p forbids;
- 5: the largest logit, as bits of a float, as are the next;
- 6, 7: for top-p alone, the masses at lo and of all;
- from `FIRST_PIVOT`: pivots;
- from `NEXT_BOUNDS`: room for new bounds, and from `NEXT_PIVOT` for new pivots.

What is decided by sums is decided once, and passed on: another kernel may round them otherwise.
"""

from __future__ import annotations

import triton
import triton.language as tl

STATE = tl.constexpr(8 + 2 * 16)
"""Numbers of a row."""

FIRST_PIVOT = tl.constexpr(8)
NEXT_BOUNDS = tl.constexpr(8 + 16)
NEXT_PIVOT = tl.constexpr(8 + 16 + 8)
PIVOTS_AGAIN = tl.constexpr(8)
"""New pivots."""

CHANGING = [
    "temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr", "u_ptr", "rows_ptr", "last_token_ptr",
    "out_ptr", "few_groups",
]  # fmt: skip
"""Arguments whose alignment and value change from step to step: of no matter to the compiler."""


@triton.jit
def load_parameters(row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, V: tl.constexpr):
    """Temperature, k (0: all), p and min-p of a row, and whether it truncates."""
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_k = tl.where((top_k > 0) & (top_k < V), top_k, 0)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    truncates = (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0))
    return temperature, top_k, top_p, min_p, truncates


@triton.jit
def is_top_p_alone(top_k, top_p, min_p):
    """Whether a row is truncated by top-p and nothing else, by what `load_parameters` gives."""
    return (top_k == 0) & (top_p < 1) & (min_p <= 0)


@triton.jit
def load_float(bits_ptr):
    """A float32 that is kept among integers."""
    return tl.load(bits_ptr).to(tl.float32, bitcast=True)


@triton.jit
def load_look(
    pivots_ptr,
    masses_ptr,
    num,
    NUM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
):
    """Pivots [NUM] of a row, and the masses [NUM, splits] above the first `num` of them."""
    count = tl.arange(0, NUM)
    splits = tl.arange(0, SPLITS_PAD)
    measured = tl.load(
        masses_ptr + count[:, None] * NUM_SPLITS + splits[None, :],
        mask=(count < num)[:, None] & (splits < NUM_SPLITS)[None, :],
        other=0.0,
    )
    return tl.load(pivots_ptr + count).to(tl.int64), measured
