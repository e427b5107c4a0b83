"""Captured computations: what a model does for one shape of batch, launched as a whole.

On a GPU a CUDA graph. Elsewhere the computation is run anew with the same tensors, which is what a
graph does too, only slower: so everything above this seam can be tested without a GPU. Knows
nothing of models or batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


class Graph:
    """A computation without arguments: it reads and writes the tensors that it was captured with.

    Attributes:
        output: what it computes, overwritten by each replay.
    """

    def __init__(self, output: torch.Tensor, replay: Callable[[], None]) -> None:
        self.output = output
        self.replay = replay


class GraphMaker:
    """Captures computations that share memory for what lives only within one of them.

    So graphs must be replayed one after another, and each output be read before the next replay of
    any of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # torch's handle
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def capture(
        self, compute: Callable[[], torch.Tensor], set_up: Callable[[], Any] | None = None
    ) -> Graph:
        """Capture `compute`, after compilers and libraries have set themselves up for it.

        Args:
            compute: run where there are no graphs.
            set_up: run before, where there are: launches whatever `compute` does at least once;
                None: that is `compute` itself.
        """
        if self._stream is None:
            output = compute()

            def run_again() -> None:
                output.copy_(compute())

            return Graph(output, run_again)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            (set_up or compute)()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = compute()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._pool = graph.pool()
        return Graph(_lent(output), graph.replay)


class _Lender:
    """Memory as other libraries see it (the CUDA array interface, version 3)."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": f"<i{tensor.element_size()}",
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


def _lent(output: torch.Tensor) -> torch.Tensor:
    """The same memory, which it does not keep from the captures to come.

    Otherwise each graph's output would be its own: 1.2 GB of logits for the batch sizes of a
    vocabulary of 128,256.
    """
    assert output.is_contiguous()
    lent: torch.Tensor = torch.as_tensor(_Lender(output), device=output.device)
    return lent.view(output.dtype)
