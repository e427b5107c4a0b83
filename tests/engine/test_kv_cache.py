"""Blocks one at a time: which are reused, which are evicted, which are found."""

from __future__ import annotations

import hashlib
from array import array

import pytest

from octavo.engine.block_pool import BlockPool
from octavo.engine.kv_cache import KVCacheManager
from octavo.engine.request import Request
from octavo.types import SamplingParams

SIZE = 4


def make(name: str, tokens: list[int], salt: str = "") -> Request:
    return Request(name, tokens, SamplingParams(), seed=0, cache_salt=salt)


def run(manager: KVCacheManager, request: Request) -> int:
    """Start and compute a request; the number of tokens found."""
    assert manager.start(request, manager.find_prefix(request))
    num_found = request.num_computed_tokens
    request.num_computed_tokens = request.num_tokens
    manager.commit(request, request.num_tokens)
    return num_found


def test_without_caching_the_block_freed_last_is_used_next() -> None:
    manager = KVCacheManager(100, SIZE, enable_prefix_caching=False)
    touched = set()
    for i in range(50):
        request = make(f"r{i}", [i] * 17)
        assert run(manager, request) == 0
        touched |= set(request.block_ids)
        manager.free(request)
    assert touched == set(range(5))


def test_fresh_blocks_are_used_before_cached_ones_are_evicted() -> None:
    manager = KVCacheManager(20, SIZE)
    first = make("first", [1] * 9)
    run(manager, first)
    manager.free(first)
    for i in range(4):
        request = make(f"r{i}", [10 + i] * 16)
        run(manager, request)
        manager.free(request)
    assert len(manager.find_prefix(make("again", [1] * 9))) == 2


def test_tails_are_evicted_before_heads_and_the_oldest_first() -> None:
    manager = KVCacheManager(8, SIZE)
    old, new = make("old", [1] * 16), make("new", [2] * 16)
    for request in (old, new):
        run(manager, request)
    for request in (old, new):
        manager.free(request)

    def found() -> list[int]:
        return [len(manager.find_prefix(make("x", [token] * 17))) for token in (1, 2)]

    assert found() == [4, 4]
    taker = make("taker", [3])
    assert manager.start(taker, manager.find_prefix(taker))
    history = [found()]
    for num_tokens in range(8, 33, 4):
        assert manager.allocate(taker, num_tokens) is not None
        history.append(found())
    assert history == [[3, 4], [2, 4], [1, 4], [0, 4], [0, 3], [0, 2], [0, 1], [0, 0]]
    assert manager.allocate(taker, 33) is None
    manager.check_integrity([taker])


def test_a_prefix_in_use_is_not_evicted_and_a_hit_makes_it_young() -> None:
    manager = KVCacheManager(6, SIZE)
    a, b = make("a", [1] * 8), make("b", [2] * 8)
    for request in (a, b):
        run(manager, request)
        manager.free(request)
    again = make("again", [1] * 8 + [3])
    assert run(manager, again) == 8
    manager.free(again)
    taker = make("taker", [9] * 16)
    run(manager, taker)
    assert len(manager.find_prefix(make("x", [1] * 9))) == 2
    assert len(manager.find_prefix(make("x", [2] * 9))) == 0


def test_at_least_one_token_is_left_to_compute() -> None:
    manager = KVCacheManager(8, SIZE)
    run(manager, make("a", [1] * 8))
    lengths = {n: len(manager.find_prefix(make("x", [1] * n))) for n in (4, 5, 8, 9)}
    assert lengths == {4: 0, 5: 1, 8: 1, 9: 2}


def test_only_committed_blocks_are_found() -> None:
    manager = KVCacheManager(8, SIZE)
    request = make("a", [1] * 12)
    manager.find_prefix(request)
    assert manager.start(request, [])
    found = []
    for num_computed in (0, 3, 4, 7, 8, 12):
        request.num_computed_tokens = num_computed
        manager.commit(request, num_computed)
        found.append(len(manager.find_prefix(make("x", [1] * 13))))
    assert found == [0, 0, 1, 1, 2, 3]


def test_hashes_chain_salt_and_tokens() -> None:
    manager = KVCacheManager(8, SIZE)
    request = make("a", [1, 2, 3, 4, 5, 6, 7, 8], salt="salt")
    run(manager, request)
    parent = hashlib.blake2b(b"salt", digest_size=32).digest()
    for index, block in enumerate(request.block_ids):
        tokens = array("i", range(index * 4 + 1, index * 4 + 5)).tobytes()
        parent = hashlib.blake2b(parent + tokens, digest_size=32).digest()
        assert manager.pool.block_of[parent] == block


def test_start_leaves_spare_blocks_and_changes_nothing_when_it_cannot() -> None:
    manager = KVCacheManager(4, SIZE)
    run(manager, make("a", [1] * 4))
    request = make("b", [1] * 9)
    prefix = manager.find_prefix(request)
    assert len(prefix) == 1
    assert not manager.start(request, prefix, num_spare=2)
    assert (manager.num_free_blocks, request.block_ids) == (3, [])
    assert manager.start(request, prefix, num_spare=1)
    assert manager.num_free_blocks == 1
    assert manager.usage == pytest.approx(0.75)


def test_cached_free_blocks_of_the_prefix_are_not_counted_twice() -> None:
    manager = KVCacheManager(3, SIZE)
    a = make("a", [1] * 8)
    run(manager, a)
    manager.free(a)
    request = make("b", [1] * 13)
    prefix = manager.find_prefix(request)
    assert len(prefix) == 2
    # Three are free, but two of them are the prefix, and two more are needed.
    assert not manager.start(request, prefix)
    manager.check_integrity([])


def test_a_block_freed_twice_is_noticed() -> None:
    pool = BlockPool(2)
    blocks = pool.take(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.release(blocks)


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0)])
def test_sizes_are_checked(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        KVCacheManager(num_blocks, block_size)
