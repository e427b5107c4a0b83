"""Counters of labels that are not known beforehand."""

from __future__ import annotations

import os
from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.observability.board import Board
from octavo.observability.label_slots import MAX_NAME_BYTES, OTHER, LabelSlots, safe_label

NUM_SLOTS = 4


@given(st.text(max_size=200))
def test_labels_are_safe(text: str) -> None:
    label = safe_label(text)
    assert label
    assert label.isprintable()
    assert len(label.encode()) <= MAX_NAME_BYTES
    assert safe_label(label) == label
    if text.isprintable() and 0 < len(text.encode("utf-8", "replace")) <= MAX_NAME_BYTES:
        assert label == text


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.text("aé世🙂\0", max_size=3).map(safe_label) | st.just(OTHER),
            st.integers(1, 100),
            st.integers(0, 12),
        ),
        max_size=60,
    )
)
def test_nothing_is_lost_and_nothing_falls(adds: list[tuple[int, str, int, int]]) -> None:
    """Servers come, count and are started anew; sums are exact, and a name's counters only rise."""
    num = 3
    first = Board.shared(num)
    boards = [first, *(Board.attached(first.fd or 0, num, i) for i in range(1, num))]
    servers = [LabelSlots(board, NUM_SLOTS, 2) for board in boards]
    before: dict[str, list[float]] = {}
    expected = Counter[str]()
    total = 0
    for server, label, value, dice in adds:
        if not dice:
            board = Board.attached(first.fd or 0, num, server)
            servers[server] = LabelSlots(board, NUM_SLOTS, 2)
        servers[server]._looked_at = float("-inf")  # look at the others' names every time
        servers[server].add(label, (value, 1), value)
        expected[label] += value
        total += value
        totals = servers[(server + 1) % num].totals()
        assert list(totals)[-1] == OTHER
        assert len(totals) - 1 <= NUM_SLOTS + num - 1
        assert sum(sums[0] for sums in totals.values()) == total
        for name, sums in totals.items():
            assert all(a >= b for a, b in zip(sums, before.get(name, [0, 0]), strict=True))
            assert name == OTHER or sums[0] <= expected[name]
        assert set(before) <= set(totals)
        before = totals
    assert sum(sums[1] for sums in before.values()) == len(adds)
    os.close(first.fd or 0)


def test_few_labels_have_their_own_counters() -> None:
    slots = LabelSlots(Board.private(), NUM_SLOTS, 1)
    for label in ("b", "a", "b"):
        slots.add(label, (2,), 2)
    assert slots.totals() == {"a": [2], "b": [4], OTHER: [0]}


def test_made_up_labels_take_half_of_the_names_and_a_large_one_still_gets_its_own() -> None:
    random = Random(0)
    slots = LabelSlots(Board.private(), 8, 1)
    for number in range(3000):
        slots.add(f"made up {number}", (1,), 1)
    assert len(slots.totals()) == 4 + 1
    for number in range(3000):
        label = "large" if random.random() < 0.3 else f"more {number}"
        slots.add(label, (1,), 1)
    totals = slots.totals()
    assert len(totals) == 5 + 1
    assert totals["large"][0] > 0
    assert sum(sums[0] for sums in totals.values()) == 6000
    assert len(slots._nameless) <= 4 * 8


def test_a_half_written_name_is_not_read() -> None:
    first = Board.shared(2)
    mine = LabelSlots(first, NUM_SLOTS, 1)
    others = LabelSlots(Board.attached(first.fd or 0, 2, 1), NUM_SLOTS, 1)
    mine.add("name", (1,), 1)
    check = 1 + mine._slot_len - 2  # of the first slot, behind the value of `other`
    known = mine._own[check]
    mine._own[check] = known + 1.0
    assert others.totals() == {OTHER: [0]}
    mine._own[check] = known
    assert others.totals() == {"name": [1], OTHER: [0]}
    os.close(first.fd or 0)
