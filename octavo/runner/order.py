"""Logits in order: the most probable tokens first, ties by lower token id.

Shapes: m rows, v vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch

INT32_MAX = 2**31 - 1


def below_max(logits: torch.Tensor) -> torch.Tensor:
    """[m, v] distance of each logit to its row's largest, >= 0; inf for a forbidden token."""
    distance = logits.amax(dim=-1, keepdim=True) - logits
    # inf - inf: the token is one of the largest (or all are forbidden; then all are alike).
    return distance.nan_to_num_(nan=0.0, posinf=torch.inf)


def order_keys(logits: torch.Tensor) -> torch.Tensor:
    """[m, v] int64 keys, all different, that rise from the largest logit down, ties by token id.

    Sorting floats leaves the order of ties to the algorithm, which changes with the number of
    candidates. Bits of a float, read as an integer, order as the float does once those of negative
    ones are flipped; the token id below them makes keys unique.
    """
    bits = (logits + 0.0).view(torch.int32)  # + 0.0: -0.0 is equal to 0.0
    rising = bits ^ ((bits >> 31) & INT32_MAX)
    halves = torch.empty(*logits.shape, 2, dtype=torch.int32, device=logits.device)
    halves[..., 0] = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device)
    torch.bitwise_not(rising, out=halves[..., 1])
    return halves.view(torch.int64).squeeze(-1)  # little-endian: the second half is the high one


def smallest(keys: torch.Tensor, num: int) -> torch.Tensor:
    """[m, num] the smallest keys, rising."""
    if keys.device.type == "cpu":  # numpy's sorts are vectorized, torch's are not
        values = keys.numpy()
        if num < values.shape[-1]:
            values = np.partition(values, num - 1, axis=-1)[:, :num]
        return torch.from_numpy(np.sort(values, axis=-1))
    if num * 4 > keys.shape[-1]:
        return torch.sort(keys, dim=-1).values[:, :num].contiguous()
    return torch.topk(keys, num, dim=-1, largest=False, sorted=True).values


def token_ids_of(keys: torch.Tensor) -> torch.Tensor:
    """The tokens whose keys these are, in the keys' shape."""
    return keys & 0xFFFFFFFF
