"""Which of several equal targets a request should go to, so that it finds its prompt's beginning in
the target's prefix cache, and no target gets much more than the others.

Three things decide, in this order: where the session, or most of the prompt, has been before
(`PrefixMemory`); else rendezvous hashing (Thaler and Ravishankar 1998; weighted as in Schindelhauer
and Schomaker 2005), so that several gateways agree without speaking to one another and a target
that goes takes only its own share along; and the bound of "Consistent Hashing with Bounded Loads"
(Mirrokni, Thorup and Zadimoghaddam, arXiv:1608.01350): no target is chosen that has more than a
given multiple of the mean load. New prompts pass over those that are remembered for more than that
multiple of the mean number of blocks, too: a few documents would fall unevenly by hash alone.
Knows targets and hashes, and neither rules nor HTTP.
"""

from __future__ import annotations

import math
from collections import Counter
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from octavo.gateway.model import Target

MAX_HOLDERS = 4
"""Targets that are remembered for a block: the latest."""

_UNIT = 2.0**-64


def draw(*parts: str | bytes) -> float:
    """A number from 0 to below 1 that depends on some texts alone, and evenly: for percentages."""
    data = b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)
    # The upper 53 bits: what a float holds, so that 1 cannot come out.
    return (int.from_bytes(blake2b(data, digest_size=8).digest(), "big") >> 11) * 2.0**-53


def rank(key: bytes, weights: Mapping[Target, float]) -> list[Target]:
    """Targets by weighted rendezvous hashing, the key's own first.

    Each is first for a share of all keys in proportion to its weight; without it, the order of the
    others stays.
    """
    scores = []
    for target, weight in weights.items():
        name = f"{target.backend}\0{target.model}\0".encode()
        digest = blake2b(name + key, digest_size=8).digest()
        share = (int.from_bytes(digest, "big") + 0.5) * _UNIT
        scores.append((math.log(min(share, 1 - 2**-53)) / weight, target))
    scores.sort(key=lambda pair: (-pair[0], pair[1].backend, pair[1].model))
    return [target for _, target in scores]


def capacities(
    loads: Mapping[Target, float],
    weights: Mapping[Target, float],
    *,
    bound: float,
    least: int,
) -> dict[Target, int]:
    """How many requests each target may have, the one that comes included: its share of all, times
    the bound, rounded up. There is always a target with less.

    Args:
        loads: requests at each now.
        weights: of each.
        bound: 1 or more.
        least: what a target may have whatever its share is.
    """
    total, whole = sum(loads.values()) + 1, sum(weights.values())
    return {
        target: max(least, math.ceil(bound * total * weights[target] / whole)) for target in loads
    }


class PrefixMemory:
    """Which targets have had which blocks of prompts, and which sessions: the latest of them.

    What a target has forgotten meanwhile is not known here: the request is then merely computed
    there again, and is there for the next one.

    Args:
        max_blocks: remembered; 0: none.
    """

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._holders: dict[bytes, tuple[Target, ...]] = {}
        self._num_held: Counter[Target] = Counter()

    def __len__(self) -> int:
        return len(self._holders)

    def find(
        self, hashes: Sequence[bytes], targets: Collection[Target]
    ) -> tuple[int, list[Target]]:
        """The longest beginning that one of some targets has had, in blocks, and who had it; the
        latest first.
        """
        holders = self._holders
        for index in range(len(hashes) - 1, -1, -1):
            found = [target for target in holders.get(hashes[index], ()) if target in targets]
            if found:
                return index + 1, found
        return 0, []

    def num_held(self, target: Target) -> int:
        """Blocks that a target is remembered for: how full its cache may be, beside the others'."""
        return self._num_held[target]

    def add(self, hashes: Sequence[bytes], target: Target) -> None:
        """A target has got a prompt with these blocks."""
        if not self._max_blocks:
            return
        holders = self._holders
        # Deep blocks first: they are the older ones, and forgotten before those that they rest on.
        for block in reversed(hashes):
            had = holders.pop(block, ())
            if not had or had[0] != target:
                others = [other for other in had if other != target]
                self._num_held[target] += len(others) == len(had)
                self._num_held.subtract(others[MAX_HOLDERS - 1 :])
                had = (target, *others[: MAX_HOLDERS - 1])
            holders[block] = had
        self.resize(self._max_blocks)

    def resize(self, max_blocks: int) -> None:
        """Remember so many blocks at the most from now on; what is older is forgotten."""
        self._max_blocks = max_blocks
        while len(self._holders) > max_blocks:
            self._num_held.subtract(self._holders.pop(next(iter(self._holders))))

    def check_integrity(self) -> None:
        """Assert what always holds."""
        assert len(self._holders) <= self._max_blocks
        for found in self._holders.values():
            assert 0 < len(found) <= MAX_HOLDERS
            assert len(set(found)) == len(found)
        held = Counter(target for found in self._holders.values() for target in found)
        assert held == +self._num_held
        assert min(self._num_held.values(), default=0) >= 0


def anchor(hashes: Sequence[bytes]) -> bytes:
    """The block that a prompt is placed by where nothing is remembered: the deepest at a power of
    two. Prompts that begin alike for long mostly share it, and a conversation that grows changes
    it only each time that it doubles.
    """
    return hashes[(1 << (len(hashes).bit_length() - 1)) - 1] if hashes else b""


def session_key(tenant: str, session_id: str) -> bytes:
    """A session in the place of a block's hash."""
    return blake2b(f"session\0{tenant}\0{session_id}".encode(), digest_size=16).digest()
