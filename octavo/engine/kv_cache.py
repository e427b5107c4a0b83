"""Which block of the KV cache holds which tokens of which request, and what can be shared.

Knows token ids and block ids. Knows nothing of the order of requests, of steps in flight, nor of
the memory behind a block.

Prefix caching: a full block is entered under the hash of its tokens chained with the hash of the
block before it, once its content is computed. A cryptographic hash (BLAKE2b, which measures as the
fastest of Python's here) stands for equality: tokens are never compared.
"""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from typing import TYPE_CHECKING

from octavo.engine.block_pool import BlockPool

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable

    from octavo.engine.request import Request

HASH_BYTES = 32


class KVCacheManager:
    """Gives blocks to requests and finds computed prefixes.

    Ownership: a block at or beyond a request's `num_computed_tokens` is written by that request and
    held by nobody else. Full, computed blocks are never written again and may be held by many.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens per block.
        enable_prefix_caching: whether computed blocks can be found by other requests.

    Attributes:
        woken: requests whose wait for a prefix is over (see `wait_for_prefix`); the scheduler
            empties the list.
    """

    def __init__(
        self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True
    ) -> None:
        if block_size < 1:
            raise ValueError(f"a block needs at least one token, got {block_size}")
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.woken: list[Request] = []
        self._promised_by: dict[bytes, Request] = {}
        self._waiters: dict[bytes, list[Request]] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""
        return self.pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no request holds; cached ones count, for they can be evicted."""
        return self.pool.num_free_blocks

    @property
    def num_tokens(self) -> int:
        """Tokens that the whole cache holds."""
        return self.pool.num_blocks * self.block_size

    @property
    def usage(self) -> float:
        """Share of blocks that requests hold, 0..1."""
        return 1.0 - self.pool.num_free_blocks / self.pool.num_blocks

    def find_prefix(self, request: Request) -> list[int]:
        """Blocks of the longest cached prefix, at least one known token short of the whole.

        Changes nothing that others see: the blocks may be gone after the next allocation.
        """
        if not self.enable_prefix_caching:
            return []
        num_known = len(request.token_ids)
        hashes = self._hash_blocks(request, num_known // self.block_size)
        block_of = self.pool.block_of
        found: list[int] = []
        for index in range((num_known - 1) // self.block_size):
            block = block_of.get(hashes[index])
            if block is None:
                break
            found.append(block)
        return found

    def wait_for_prefix(self, request: Request, num_found: int) -> bool:
        """Let the request wait if the block after its cached prefix is being computed already.

        It turns up in `woken` when the last such block in a row is computed, or given up. Only
        requests that hold blocks are waited for, so that nobody waits for a waiting one.

        Args:
            request: one without blocks.
            num_found: length of what `find_prefix` returned.
        """
        if not self.enable_prefix_caching:
            return False
        promised_by, hashes = self._promised_by, request.block_hashes
        limit = (len(request.token_ids) - 1) // self.block_size
        index = num_found
        while index < limit and hashes[index] in promised_by:
            index += 1
        if index == num_found:
            return False
        self._waiters.setdefault(hashes[index - 1], []).append(request)
        return True

    def start(self, request: Request, prefix: list[int], *, num_spare: int = 0) -> bool:
        """Give the request a shared prefix and blocks for the rest of its tokens, or nothing.

        Its tokens are promised to others from here on (`wait_for_prefix`) until `commit`, `free`.

        Args:
            request: one without blocks, all of whose tokens are known.
            prefix: full blocks that hold its first tokens, from `find_prefix`.
            num_spare: blocks that must stay free.

        Returns:
            False, and nothing changed, when too few blocks are free.
        """
        assert not request.block_ids
        pool = self.pool
        num_needed = -(-request.num_tokens // self.block_size) - len(prefix)
        num_free = pool.num_free_blocks - pool.num_free_among(prefix)
        if num_needed + num_spare > num_free:
            return False
        pool.share(prefix)
        request.block_ids = prefix + pool.take(num_needed)
        request.num_computed_tokens = len(prefix) * self.block_size
        if self.enable_prefix_caching:
            request.num_cached_blocks = len(prefix)
            request.num_promised_blocks = len(request.token_ids) // self.block_size
            for index in range(len(prefix), request.num_promised_blocks):
                self._promised_by.setdefault(request.block_hashes[index], request)
        return True

    def fork(self, parent: Request, child: Request) -> bool:
        """Start `child` on the blocks of `parent` that both have in common and neither will write.

        The block that the child writes next is its own: its few tokens are computed anew, which
        costs less than a step that copies blocks would.

        Args:
            parent: a running request, no step of which is in flight.
            child: one without blocks; its tokens begin with some of the parent's.
        """
        num_common = min(parent.num_computed_tokens, len(child.token_ids) - 1)
        num_shared = num_common // self.block_size
        end = num_shared * self.block_size
        assert parent.token_ids[:end] == child.token_ids[:end]
        if self.enable_prefix_caching:
            self.commit(parent, parent.num_computed_tokens)
            self._hash_blocks(child, len(child.token_ids) // self.block_size)
        return self.start(child, parent.block_ids[:num_shared])

    def allocate(self, request: Request, num_tokens: int) -> list[int] | None:
        """Make room for the request's first `num_tokens` tokens.

        Returns:
            The blocks added to `request.block_ids`; None, and nothing changed, when too few are
            free.
        """
        num_needed = -(-num_tokens // self.block_size) - len(request.block_ids)
        if num_needed <= 0:
            return []
        if num_needed > self.pool.num_free_blocks:
            return None
        blocks = self.pool.take(num_needed)
        request.block_ids += blocks
        return blocks

    def commit(self, request: Request, num_computed_tokens: int) -> None:
        """The KV of the first `num_computed_tokens` tokens is in the cache: let others find it.

        The tokens themselves must be known by now.
        """
        if not self.enable_prefix_caching:
            return
        end = num_computed_tokens // self.block_size
        hashes = self._hash_blocks(request, end)
        for index in range(request.num_cached_blocks, end):
            self.pool.remember(request.block_ids[index], hashes[index])
            if index < request.num_promised_blocks:
                self._end_promise(hashes[index], request)
        request.num_cached_blocks = max(end, request.num_cached_blocks)

    def free(self, request: Request) -> None:
        """Take all blocks back; what is cached of them can be found until it is evicted."""
        for index in range(request.num_cached_blocks, request.num_promised_blocks):
            self._end_promise(request.block_hashes[index], request)
        self.pool.release(request.block_ids)
        request.block_ids = []
        request.num_computed_tokens = 0
        request.num_cached_blocks = request.num_promised_blocks = 0

    def reset_prefix_cache(self) -> None:
        """Forget all cached content. Requests keep their blocks."""
        self.pool.forget_all()

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise AssertionError unless all is consistent; linear time, for tests.

        Args:
            requests: all that may hold blocks.
        """
        self.pool.check_integrity()
        requests = list(requests)
        holders: Counter[int] = Counter()
        for request in requests:
            blocks = request.block_ids
            assert len(blocks) == len(set(blocks)), f"a block twice in {request}"
            assert len(blocks) * self.block_size >= request.num_computed_tokens, request
            holders.update(blocks)
        for block in range(self.num_blocks):
            assert holders[block] == self.pool.num_refs(block), f"references of block {block}"
        root_of: dict[int, tuple[str, array[int]]] = {}
        for request in requests:
            for index, block in enumerate(request.block_ids):
                end = (index + 1) * self.block_size
                if end > request.num_computed_tokens:
                    assert holders[block] == 1, f"{request} would write shared block {block}"
                    assert not self.pool.is_cached(block), f"{request} would write cached {block}"
                elif end <= len(request.token_ids):
                    content = (request.cache_salt, request.token_ids[:end])
                    assert root_of.setdefault(block, content) == content, f"content of {block}"
        for content_hash, owner in self._promised_by.items():
            assert owner in requests, f"{owner} promised a block and holds none"
            assert content_hash in owner.block_hashes[owner.num_cached_blocks :], owner
        assert self._waiters.keys() <= self._promised_by.keys(), "waiting for nobody"

    def _end_promise(self, content: bytes, request: Request) -> None:
        if self._promised_by.get(content) is request:
            del self._promised_by[content]
            self.woken += self._waiters.pop(content, ())

    def _hash_blocks(self, request: Request, count: int) -> list[bytes]:
        """At least `count` block hashes of the request; all their tokens must be known."""
        hashes, size = request.block_hashes, self.block_size
        if len(hashes) < count:
            tokens = request.token_ids
            parent = hashes[-1] if hashes else _hash(request.cache_salt.encode())
            for start in range(len(hashes) * size, count * size, size):
                parent = _hash(parent + tokens[start : start + size].tobytes())
                hashes.append(parent)
        return hashes


def _hash(content: bytes) -> bytes:
    return blake2b(content, digest_size=HASH_BYTES).digest()
