"""Random operations on the block manager against a memory that shows what each block holds."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo.engine.kv_cache import KVCacheManager
from octavo.engine.request import Request
from octavo.types import SamplingParams
from tests.engine.stateful import SETTINGS

PARAMS = SamplingParams()


class KVCacheMachine(RuleBasedStateMachine):
    """Two tokens and two salts, so that prefixes meet all the time.

    `memory` maps a slot to the salt and all tokens up to it, which its KV depends on. It is
    written where a request computes, read where one continues, and knows nothing of hashes.
    """

    @initialize(num_blocks=st.integers(1, 12), block_size=st.integers(1, 4), caching=st.booleans())
    def set_up(self, num_blocks: int, block_size: int, caching: bool) -> None:
        self.manager = KVCacheManager(num_blocks, block_size, enable_prefix_caching=caching)
        self.memory: dict[int, tuple[str, list[int]]] = {}
        self.waiting: list[Request] = []
        self.parked: list[Request] = []
        self.running: list[Request] = []
        self.count = 0

    @rule(
        zeros=st.integers(0, 12),
        tail=st.lists(st.integers(0, 1), max_size=3),
        salt=st.sampled_from(["", "s"]),
        may_wait=st.booleans(),
    )
    def arrive(self, zeros: int, tail: list[int], salt: str, may_wait: bool) -> None:
        self.count += 1
        tokens = [0] * zeros + (tail or [1])
        request = Request(f"r{self.count}", tokens, PARAMS, seed=0, cache_salt=salt)
        self.waiting.append(request)
        self.try_to_start(request, may_wait, 0)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), may_wait=st.booleans(), num_spare=st.integers(0, 2))
    def start(self, data: st.DataObject, may_wait: bool, num_spare: int) -> None:
        self.try_to_start(data.draw(st.sampled_from(self.waiting)), may_wait, num_spare)

    def try_to_start(self, request: Request, may_wait: bool, num_spare: int) -> None:
        prefix = self.manager.find_prefix(request)
        assert len(prefix) * self.manager.block_size < request.num_tokens
        if may_wait and self.manager.wait_for_prefix(request, len(prefix)):
            self.waiting.remove(request)
            self.parked.append(request)
            return
        before = self.manager.num_free_blocks
        if self.manager.start(request, prefix, num_spare=num_spare):
            assert self.manager.num_free_blocks >= num_spare
            self.waiting.remove(request)
            self.running.append(request)
        else:
            assert self.manager.num_free_blocks == before
            assert not request.block_ids
            assert before < -(-request.num_tokens // self.manager.block_size) + num_spare
        self.check_content(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), num_tokens=st.integers(1, 20), commits=st.integers(0, 3))
    def compute(self, data: st.DataObject, num_tokens: int, commits: int) -> None:
        request = data.draw(st.sampled_from(self.running))
        end = min(request.num_computed_tokens + num_tokens, request.num_tokens)
        for position in range(request.num_computed_tokens, end):
            self.memory[self.slot(request, position)] = self.content(request, position)
        request.num_computed_tokens = end
        if commits:
            self.manager.commit(request, end)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), token=st.integers(0, 1))
    def grow(self, data: st.DataObject, token: int) -> None:
        request = data.draw(st.sampled_from(self.running))
        before = list(request.block_ids)
        blocks = self.manager.allocate(request, request.num_tokens + 1)
        if blocks is None:
            assert self.manager.num_free_blocks == 0
            assert request.block_ids == before
            return
        assert request.block_ids == before + blocks
        request.token_ids.append(token)
        request.num_tokens += 1

    @precondition(lambda self: self.running)
    @rule(data=st.data(), extra=st.lists(st.integers(0, 1), max_size=4))
    def fork(self, data: st.DataObject, extra: list[int]) -> None:
        parent = data.draw(st.sampled_from(self.running))
        length = parent.num_tokens if extra else data.draw(st.integers(1, parent.num_tokens))
        self.count += 1
        tokens = parent.token_ids[:length].tolist() + extra
        child = Request(f"r{self.count}", tokens, PARAMS, seed=0, cache_salt=parent.cache_salt)
        if self.manager.fork(parent, child):
            self.running.append(child)
            size = self.manager.block_size
            common = min(parent.num_computed_tokens, length, child.num_tokens - 1)
            assert child.num_computed_tokens >= common - common % size
            self.check_content(child)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), again=st.booleans())
    def free(self, data: st.DataObject, again: bool) -> None:
        """A request ends, or is preempted."""
        request = data.draw(st.sampled_from(self.running))
        self.running.remove(request)
        self.manager.free(request)
        if again:
            self.waiting.append(request)

    @rule()
    def reset(self) -> None:
        self.manager.reset_prefix_cache()
        assert not any(self.manager.find_prefix(request) for request in self.waiting)

    @invariant()
    def is_sound(self) -> None:
        self.manager.check_integrity(self.running)
        for request in self.manager.woken:
            self.parked.remove(request)
            self.waiting.append(request)
        self.manager.woken.clear()
        assert self.running or not self.parked, "a request waits for nobody"
        for request in self.running:
            self.check_content(request)

    def teardown(self) -> None:
        for request in self.running:
            self.manager.free(request)
        self.running.clear()
        self.is_sound()
        assert self.manager.num_free_blocks == self.manager.num_blocks
        assert self.manager.usage == 0

    def slot(self, request: Request, position: int) -> int:
        block, offset = divmod(position, self.manager.block_size)
        return request.block_ids[block] * self.manager.block_size + offset

    def content(self, request: Request, position: int) -> tuple[str, list[int]]:
        return request.cache_salt, request.token_ids[: position + 1].tolist()

    def check_content(self, request: Request) -> None:
        for position in range(request.num_computed_tokens):
            assert self.memory[self.slot(request, position)] == self.content(request, position)


TestKVCacheMachine = KVCacheMachine.TestCase
TestKVCacheMachine.settings = SETTINGS
