"""Blocks of the KV cache as numbers: reference counts, a free list, and hashes of cached blocks.

Knows nothing of requests, tokens or memory: a block is an int in 0..num_blocks - 1, and a hash is
a key. Every operation on one block takes constant time.
"""

from __future__ import annotations


class BlockPool:
    """Owner of all blocks.

    The free list is a doubly linked ring through `num_blocks + 1` places (the last is its sentinel)
    so that a block that is found again leaves the middle of the list in constant time. Blocks are
    taken from its front. A freed block that holds nothing worth finding goes to the front: it is
    the next to be used, so that memory once touched is used again before fresh memory is. A cached
    block goes to the back: the front of the cached ones is the least recently used.

    Attributes:
        num_blocks: blocks in the pool.
        num_free_blocks: blocks with no reference; cached ones may be among them.
        block_of: block by hash, for the blocks that can be found.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a pool needs at least one block, got {num_blocks}")
        self.num_blocks = num_blocks
        self.num_free_blocks = num_blocks
        self.block_of: dict[bytes, int] = {}
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._num_refs = [0] * num_blocks
        self._next = [*range(1, num_blocks + 1), 0]
        self._prev = [num_blocks, *range(num_blocks)]

    def num_refs(self, block: int) -> int:
        """How many requests hold the block."""
        return self._num_refs[block]

    def is_cached(self, block: int) -> bool:
        """Whether the block can be found by its content."""
        return self._hash_of[block] is not None

    def take(self, count: int) -> list[int]:
        """Take `count` blocks off the free list; cached content in them is forgotten.

        The caller makes sure that `count <= num_free_blocks`.
        """
        assert count <= self.num_free_blocks
        following, hash_of, num_refs = self._next, self._hash_of, self._num_refs
        sentinel = self.num_blocks
        block = following[sentinel]
        taken: list[int] = []
        for _ in range(count):
            taken.append(block)
            num_refs[block] = 1
            content = hash_of[block]
            if content is not None:
                del self.block_of[content]
                hash_of[block] = None
            block = following[block]
        following[sentinel] = block
        self._prev[block] = sentinel
        self.num_free_blocks -= count
        return taken

    def share(self, blocks: list[int]) -> None:
        """Add a reference to each block; free ones leave the free list with their content."""
        num_refs, following, previous = self._num_refs, self._next, self._prev
        for block in blocks:
            if num_refs[block] == 0:
                before, after = previous[block], following[block]
                following[before] = after
                previous[after] = before
                self.num_free_blocks -= 1
            num_refs[block] += 1

    def release(self, blocks: list[int]) -> None:
        """Drop a reference to each block, the last block first.

        So the tail of a sequence is evicted before its head, without which it cannot be found.
        """
        num_refs, following, previous = self._num_refs, self._next, self._prev
        hash_of, sentinel = self._hash_of, self.num_blocks
        for block in reversed(blocks):
            count = num_refs[block] - 1
            assert count >= 0, f"block {block} was freed twice"
            num_refs[block] = count
            if count:
                continue
            if hash_of[block] is None:
                before, after = sentinel, following[sentinel]
            else:
                before, after = previous[sentinel], sentinel
            following[before] = previous[after] = block
            previous[block], following[block] = before, after
            self.num_free_blocks += 1

    def num_free_among(self, blocks: list[int]) -> int:
        """How many of the blocks are on the free list."""
        num_refs = self._num_refs
        return sum(not num_refs[block] for block in blocks)

    def remember(self, block: int, content: bytes) -> None:
        """Let a held block be found by its content's hash, unless another one already is."""
        assert self._num_refs[block] > 0
        assert self._hash_of[block] in (None, content)
        if self.block_of.setdefault(content, block) == block:
            self._hash_of[block] = content

    def forget_all(self) -> None:
        """No block can be found any more. References stay."""
        self.block_of.clear()
        self._hash_of = [None] * self.num_blocks

    def free_list(self) -> list[int]:
        """The free blocks, the next to be taken first; linear time, for tests and checks."""
        order: list[int] = []
        block = self._next[self.num_blocks]
        while block != self.num_blocks and len(order) <= self.num_blocks:
            order.append(block)
            block = self._next[block]
        return order

    def check_integrity(self) -> None:
        """Raise AssertionError unless list, counts and hashes agree with each other."""
        free = self.free_list()
        assert len(free) == len(set(free)) == self.num_free_blocks, "free list and its length"
        assert set(free) == {block for block, count in enumerate(self._num_refs) if count == 0}, (
            "free list and reference counts"
        )
        for block, after in enumerate(self._next):
            if block == self.num_blocks or self._num_refs[block] == 0:
                assert self._prev[after] == block, f"links around block {block}"
        hashes = {content: block for block, content in enumerate(self._hash_of) if content}
        assert hashes == self.block_of, "hashes and blocks"
