"""Log-probabilities and ranks of sampled tokens and of the most probable ones, under raw logits.

Made in torch for any device, by native code on a CPU (`kernels/cpu/sampling.py`), or by
`kernels/logprobs.py`, and read on the host once the device has come so far.

Shapes: m rows of a batch, v vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from octavo.kernels import cpu
from octavo.kernels.cpu import sampling as native
from octavo.runner.order import below_max, order_keys, smallest, token_ids_of
from octavo.types import PositionLogprobs, TokenLogprob

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]


class Reports(Protocol):
    """Log-probabilities on their way to the host."""

    def entries(self, num_rows: int) -> list[PositionLogprobs | None]:
        """One for each row, None where it asked for none; the device must have come so far."""
        ...


@dataclass(frozen=True, slots=True)
class TorchReports:
    """Log-probabilities of m rows, on the host or on their way there.

    Attributes:
        places: [m] which rows of the batch.
        num_logprobs: [m].
        columns: token ids, log-probabilities and ranks of the sampled tokens, each [m]; ids,
            log-probabilities and logits of the most probable ones, each [m, most].
    """

    places: Rows
    num_logprobs: NDArray[np.int32]
    columns: tuple[torch.Tensor, ...]

    def entries(self, num_rows: int) -> list[PositionLogprobs | None]:
        """See `Reports`."""
        table = zip(
            self.places,
            self.num_logprobs.tolist(),
            *(column.tolist() for column in self.columns),
            strict=True,
        )
        entries: list[PositionLogprobs | None] = [None] * num_rows
        for place, num, token_id, logprob, rank, top_ids, top_logprobs, top_raw in table:
            top: list[TokenLogprob] = []
            for j in range(min(num, len(top_ids))):
                tied = j > 0 and top_raw[j] == top_raw[j - 1]
                top_rank = top[-1].rank if tied else j + 1
                top.append(TokenLogprob(top_ids[j], top_logprobs[j], top_rank))
            entries[place] = PositionLogprobs(TokenLogprob(token_id, logprob, rank), top)
        return entries


def can_be_native(logits: torch.Tensor) -> bool:
    """Whether native code may sample from these logits and report them."""
    return (
        logits.device.type == "cpu"
        and logits.dtype in native.DTYPES
        and logits.stride(1) == 1
        and cpu.why_not() is None
    )


def report(
    raw: torch.Tensor, token_ids: torch.Tensor, num_logprobs: NDArray[np.int32], places: Rows
) -> Reports:
    """Log-probabilities under the raw logits [m, v], for tokens [m]."""
    if can_be_native(raw):
        most = min(int(num_logprobs.max()), raw.shape[1])
        packed = native.report(raw, token_ids, most)
        return PackedReports(packed, places, num_logprobs, raw.shape[1])
    raw = raw.float()
    logprobs = torch.log_softmax(-below_max(raw), dim=-1)
    picked = token_ids[:, None]
    ranks = (raw > raw.gather(1, picked)).sum(dim=-1) + 1
    most = min(int(num_logprobs.max()), raw.shape[-1])
    tops = token_ids_of(smallest(order_keys(raw), most)) if most else picked[:, :0]
    columns = (
        token_ids,
        logprobs.gather(1, picked).squeeze(1),
        ranks,
        tops,
        logprobs.gather(1, tops),
        raw.gather(1, tops),
    )
    on_host = tuple(column.to("cpu", non_blocking=True) for column in columns)
    return TorchReports(places, num_logprobs, on_host)


@dataclass(frozen=True, slots=True)
class PackedReports:
    """Log-probabilities of m rows, on the host or on their way there.

    Attributes:
        packed: [m, 3 + 3 * most] int32, see `report_logprobs` and `native.sample`.
        places: [m] which rows of the batch.
        num_logprobs: [m] how many of the most probable tokens each row asked for.
        vocab_size: the most there are.
    """

    packed: torch.Tensor
    places: Rows
    num_logprobs: NDArray[np.int32]
    vocab_size: int

    def entries(self, num_rows: int) -> list[PositionLogprobs | None]:
        """See `Reports`."""
        integers = self.packed.numpy()
        floats = integers.view(np.float32)
        most = (integers.shape[1] - 3) // 3
        entries: list[PositionLogprobs | None] = [None] * num_rows
        for place, ints, bits, num in zip(
            self.places.tolist(),
            integers.tolist(),
            floats.tolist(),
            self.num_logprobs.tolist(),
            strict=True,
        ):
            sampled = TokenLogprob(ints[0], bits[2], ints[1])
            top = [
                TokenLogprob(ints[3 + i], bits[3 + 2 * most + i], ints[3 + most + i])
                for i in range(min(num, self.vocab_size))
            ]
            entries[place] = PositionLogprobs(sampled, top)
        return entries
