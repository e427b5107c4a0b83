"""Tokens from logits and reports of log-probabilities, all rows of a step in one native call.

Knows arrays and pointers, no requests. Semantics are those of `runner/sampler.py`; how it is done
is in src/sample.cpp and src/spans.h.

Shapes: n rows, v vocabulary, R rows of the request table, m rows that are reported.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch

from octavo.kernels.cpu import library
from octavo.kernels.cpu.plan import address

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Of logits."""

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Sampling(ctypes.Structure):
    """What is asked for: `struct Sampling` of src/sample.h."""

    _fields_ = (
        ("num_rows", _LONG),
        ("vocab_size", _LONG),
        ("logits", _POINTER),
        ("stride", _LONG),
        ("dtype", _INT),
        ("num_top", _INT),
        ("rows", _POINTER),
        ("positions", _POINTER),
        ("temperature", _POINTER),
        ("top_k", _POINTER),
        ("top_p", _POINTER),
        ("farthest", _POINTER),
        ("seed", _POINTER),
        ("token_ids", _POINTER),
        ("num_reports", _LONG),
        ("places", _POINTER),
        ("raw", _POINTER),
        ("raw_stride", _LONG),
        ("reports", _POINTER),
        ("error", _LONG),
    )


class Parameters:
    """Where the parameters of the request table lie; keeps the arrays alive.

    Args:
        temperature: [R] float32, 0 (greedy) or a normal number above.
        top_k: [R] int32, 0 for all.
        top_p: [R] float32, above 0.
        farthest: [R] float32, the largest distance to the largest logit, over temperature, of a
            token that min-p keeps; infinite: it keeps all.
        seed: [R] uint64.
    """

    def __init__(
        self,
        temperature: NDArray[np.float32],
        top_k: NDArray[np.int32],
        top_p: NDArray[np.float32],
        farthest: NDArray[np.float32],
        seed: NDArray[np.uint64],
    ) -> None:
        arrays: dict[str, NDArray[Any]] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "farthest": farthest,
            "seed": seed,
        }
        dtypes = ("float32", "int32", "float32", "float32", "uint64")
        self._asked = Sampling()
        for (name, array), dtype in zip(arrays.items(), dtypes, strict=True):
            assert array.dtype == dtype
            assert array.flags.c_contiguous
            setattr(self._asked, name, array.ctypes.data)
        self._keep = arrays

    def asked(self) -> Sampling:
        """A new one that points to them."""
        return Sampling.from_buffer_copy(self._asked)


def sample(
    logits: torch.Tensor,
    rows: NDArray[np.int64],
    positions: NDArray[np.int64],
    parameters: Parameters,
    places: NDArray[np.int64],
    num_top: int = 0,
    raw: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Choose a token for each row; what a row gets depends on its own arguments alone.

    Args:
        logits: [n, v] float32 or bfloat16, the values of a row side by side. Unchanged.
        rows: [n] places in `parameters`.
        positions: [n] tokens that the row has before the sampled one.
        parameters: of the requests.
        places: [m] which of the n rows are reported, rising; may be empty.
        num_top: how many of the most probable tokens are reported, at most v.
        raw: [m, v] like `logits`, what is reported if not these.

    Returns:
        [n] int64 token ids; None where nothing is reported, else [m, 3 + 3 * num_top] int32: token,
        rank and, as bits of a float32, log-probability of the sampled token; then ids, ranks and
        log-probabilities of the most probable ones, in order.

    Raises:
        MemoryError: there is none for a row of candidates.
    """
    token_ids = torch.empty(logits.shape[0], dtype=torch.int64, device="cpu")
    asked = parameters.asked()
    asked.rows, asked.positions = address(rows), address(positions)
    return token_ids, _run(asked, logits, token_ids, places, num_top, raw)


def report(logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> torch.Tensor:
    """Report given tokens [n] int64 under logits [n, v], see `sample`: [n, 3 + 3 * num_top].

    Raises:
        IndexError: a token is not in the vocabulary.
        MemoryError: as above.
    """
    places = torch.arange(len(token_ids), device="cpu").numpy()
    packed = _run(Sampling(), logits, token_ids.contiguous(), places, num_top, None)
    assert packed is not None
    return packed


def _run(
    asked: Sampling,
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    places: NDArray[np.int64],
    num_top: int,
    raw: torch.Tensor | None,
) -> torch.Tensor | None:
    asked.num_rows, asked.vocab_size = logits.shape
    assert logits.stride(1) == 1
    assert token_ids.dtype == torch.int64
    assert len(token_ids) == asked.num_rows
    asked.logits, asked.stride = logits.data_ptr(), logits.stride(0)
    asked.dtype, asked.token_ids = DTYPES[logits.dtype], token_ids.data_ptr()
    packed = None
    if places.size:
        assert 0 <= num_top <= asked.vocab_size
        packed = torch.empty((len(places), 3 + 3 * num_top), dtype=torch.int32, device="cpu")
        asked.num_reports, asked.num_top = len(places), num_top
        asked.places, asked.reports = address(places), packed.data_ptr()
        if raw is not None:
            assert raw.shape == (len(places), asked.vocab_size)
            assert raw.dtype == logits.dtype
            assert raw.stride(1) == 1
            asked.raw, asked.raw_stride = raw.data_ptr(), raw.stride(0)
    library().octavo_sample(ctypes.byref(asked))
    if asked.error == 1:
        raise IndexError("a token is not in the vocabulary")
    if asked.error:
        raise MemoryError("no memory for sampling")
    return packed
