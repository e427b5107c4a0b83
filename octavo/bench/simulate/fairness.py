"""How evenly tenants were served: Jain's index over max-min fair shares, while they contend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from octavo.bench.simulate.record import Record
    from octavo.bench.simulate.trace import Trace


def fairness(served: NDArray[np.float64], asked: NDArray[np.float64]) -> float:
    """Jain's index of what each was served, as a part of its max-min share of the whole."""
    shares = max_min_shares(asked, float(served.sum()))
    return jain_index(served[shares > 0] / shares[shares > 0])


def jain_index(shares: NDArray[np.float64]) -> float:
    """(sum x)^2 / (n sum x^2): 1 when all shares are equal, 1/n when one has all (Jain, 1984)."""
    squares = float((shares**2).sum())
    return float(shares.sum()) ** 2 / (len(shares) * squares) if squares else 1.0


def max_min_shares(demands: NDArray[np.float64], capacity: float) -> NDArray[np.float64]:
    """What each gets when all get the same, but nobody more than asked for, of `capacity`."""
    shares = np.zeros(len(demands))
    left = capacity
    for place, index in enumerate(np.argsort(demands, kind="stable")):
        shares[index] = min(float(demands[index]), left / (len(demands) - place))
        left -= shares[index]
    return shares


def contended_service(
    trace: Trace, record: Record
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tokens a second that each tenant was served, and asked for, while all of them were sending.

    If they sent everything at once, while all of them had unfinished requests. A prompt's tokens
    count at its first token, the output's evenly from there to the last.
    """
    num = len(trace.tenants)
    done = ~np.isnan(record.last_s)
    owners = [done & (trace.tenant == tenant) for tenant in range(num)]
    active = [mine for mine in owners if mine.any()]
    served, asked = np.zeros(num), np.zeros(num)
    if not active:
        return served, asked
    sent, first, last = record.sent_s, record.first_s, record.last_s
    begin = max(float(sent[mine].min()) for mine in active)
    end = min(float(sent[mine].max()) for mine in active)
    if end <= begin:
        end = min(float(last[mine].max()) for mine in active)
    end = max(end, begin + 1e-9)
    for tenant, mine in enumerate(owners):
        tokens = trace.input_len[mine] + trace.output_len[mine]
        asked[tenant] = tokens[sent[mine] <= end].sum()
        begun = mine & (first >= begin) & (first <= end)
        overlap = np.minimum(last[mine], end) - np.maximum(first[mine], begin)
        share = np.clip(overlap / np.maximum(last[mine] - first[mine], 1e-9), 0.0, 1.0)
        served[tenant] = trace.input_len[begun].sum() + (trace.output_len[mine] * share).sum()
    return served / (end - begin), asked / (end - begin)
