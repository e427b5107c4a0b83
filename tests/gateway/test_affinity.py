"""Rendezvous hashing, load bounds and the memory of prefixes, as the papers have them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.gateway.affinity import PrefixMemory, anchor, capacities, draw, rank, session_key
from octavo.gateway.model import Target

targets = st.lists(
    st.builds(Target, st.sampled_from("abcdefgh"), st.sampled_from("mn")),
    min_size=1,
    max_size=10,
    unique=True,
)


def keys(number: int) -> list[bytes]:
    return [session_key("", str(index)) for index in range(number)]


def replicas(number: int) -> dict[Target, float]:
    return {Target(f"replica-{index}", "m"): 1.0 for index in range(number)}


def test_a_replica_that_goes_takes_only_its_share_along() -> None:
    """Of 4000 sessions at ten replicas, those of the one that goes are spread over the others, and
    no other session moves."""
    weights = replicas(10)
    before = {key: rank(key, weights)[0] for key in keys(4000)}
    gone = Target("replica-3", "m")
    rest = {target: 1.0 for target in weights if target != gone}
    after = {key: rank(key, rest)[0] for key in before}
    moved = [key for key in before if before[key] != after[key]]
    assert {before[key] for key in moved} == {gone}
    assert len(moved) == pytest.approx(400, abs=100)  # five standard deviations
    counts = Counter(after[key] for key in moved)
    assert len(counts) == 9
    assert max(counts.values()) < 3 * len(moved) / 9


@settings(deadline=None)
@given(targets, st.binary(max_size=20), st.data())
def test_the_order_of_others_stays(found: list[Target], key: bytes, data: st.DataObject) -> None:
    weights = dict.fromkeys(found, 1.0)
    gone = data.draw(st.sampled_from(found))
    whole = rank(key, weights)
    assert sorted(whole, key=str) == sorted(found, key=str)
    assert rank(key, dict.fromkeys(reversed(found), 1.0)) == whole
    weights.pop(gone)
    assert rank(key, weights) == [target for target in whole if target != gone]


def test_shares_follow_weights() -> None:
    weights = {Target("one", "m"): 1.0, Target("three", "m"): 3.0, Target("six", "m"): 6.0}
    counts = Counter(rank(key, weights)[0].backend for key in keys(5000))
    assert counts["one"] == pytest.approx(500, abs=110)
    assert counts["three"] == pytest.approx(1500, abs=165)
    assert counts["six"] == pytest.approx(3000, abs=175)


def test_a_greater_weight_only_draws_keys_to_itself() -> None:
    light = {Target("a", "m"): 1.0, Target("b", "m"): 1.0, Target("c", "m"): 1.0}
    heavy = {**light, Target("c", "m"): 2.0}
    for key in keys(500):
        if rank(key, light)[0] != rank(key, heavy)[0]:
            assert rank(key, heavy)[0] == Target("c", "m")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.builds(Target, st.text(max_size=3), st.just("m")),
        st.tuples(st.floats(0, 1e6, allow_nan=False), st.floats(0.01, 1000, allow_nan=False)),
        min_size=1,
        max_size=12,
    ),
    st.floats(1, 10),
    st.integers(0, 50),
)
def test_somebody_always_has_room(
    found: dict[Target, tuple[float, float]], bound: float, least: int
) -> None:
    loads = {target: load for target, (load, _) in found.items()}
    weights = {target: weight for target, (_, weight) in found.items()}
    room = capacities(loads, weights, bound=bound, least=least)
    assert any(loads[target] < room[target] for target in loads)


def test_capacities_are_the_papers() -> None:
    """ceil(c * m / n) of m balls in n bins, the one that comes included."""
    loads = dict(zip(replicas(4), (3.0, 3.0, 0.0, 1.0), strict=True))
    room = capacities(loads, replicas(4), bound=1.25, least=0)
    assert set(room.values()) == {3}  # ceil(1.25 * 8 / 4)
    assert set(capacities(loads, replicas(4), bound=1.25, least=7).values()) == {7}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=6), st.integers(0, 6)), max_size=60),
    st.integers(0, 12),
)
def test_memory_against_a_plain_list(added: list[tuple[list[int], int]], max_blocks: int) -> None:
    """What it finds is what was added last, for every beginning, as long as nothing is forgotten;
    and it never holds more than it may."""
    everyone = [Target(f"r{index}", "m") for index in range(7)]
    memory, endless = PrefixMemory(max_blocks), PrefixMemory(10**6)
    latest: dict[bytes, list[Target]] = {}
    for chain, holder in added:
        hashes = [bytes(chain[: index + 1]) for index in range(len(chain))]
        for one in (memory, endless):
            one.add(hashes, everyone[holder])
            one.check_integrity()
        for block in hashes:
            held = latest.setdefault(block, [])
            latest[block] = [everyone[holder], *(t for t in held if t != everyone[holder])][:4]
    for chain, _ in added:
        hashes = [bytes(chain[: index + 1]) for index in range(len(chain))]
        assert endless.find(hashes, everyone) == (
            (len(hashes), latest[hashes[-1]]) if hashes else (0, [])
        )
        depth, found = memory.find(hashes, everyone)
        assert depth <= len(hashes)
        assert bool(found) == bool(depth)
    assert len(memory) <= max_blocks


def test_the_deep_is_forgotten_first() -> None:
    memory = PrefixMemory(4)
    memory.add([b"1", b"12", b"123"], Target("a", "m"))
    memory.add([b"2", b"23"], Target("b", "m"))
    assert memory.find([b"1", b"12", b"123"], [Target("a", "m")]) == (2, [Target("a", "m")])
    assert memory.find([b"2", b"23"], [Target("b", "m")])[0] == 2
    assert memory.find([b"2", b"23"], [Target("a", "m")]) == (0, [])


def test_anchors_change_only_with_doubled_length() -> None:
    blocks = [bytes([index]) for index in range(40)]
    assert anchor([]) == b""
    found = [anchor(blocks[:length])[0] for length in range(1, 40)]
    assert found == [(1 << (length.bit_length() - 1)) - 1 for length in range(1, 40)]


def test_draws_are_even_and_apart() -> None:
    draws = [draw("canary", "a", str(index)) for index in range(4000)]
    assert all(0 <= value < 1 for value in draws)
    assert sum(value < 0.1 for value in draws) == pytest.approx(400, abs=95)
    others = [draw("canary", "b", str(index)) for index in range(4000)]
    both = sum(a < 0.5 and b < 0.5 for a, b in zip(draws, others, strict=True))
    assert both == pytest.approx(1000, abs=140)
    assert draw("a", "bc") != draw("ab", "c")
