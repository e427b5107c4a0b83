"""Fairness of the queue, against its law and under random operations."""

from __future__ import annotations

import os
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.gateway.limits_queue import MAX_GONE, FairQueue

NUM_EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "30"))


class Entry:
    def __init__(self, tenant: str, cost: int) -> None:
        self.tenant, self.cost = tenant, cost


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(st.lists(st.lists(st.integers(1, 50), min_size=40, max_size=40), min_size=2, max_size=4))
def test_tenants_that_always_wait_get_the_same(costs: list[list[int]]) -> None:
    queue: FairQueue[Entry] = FairQueue()
    for index, of_tenant in enumerate(costs):
        for cost in of_tenant:
            queue.push(str(index), Entry(str(index), cost))
    served = {str(index): 0 for index in range(len(costs))}
    largest = max(map(max, costs))
    while all(queue.num_of(name) for name in served):
        tenant, entry = next(queue.in_turn())
        assert queue.serve(tenant, entry, entry.cost)
        served[tenant] += entry.cost
        queue.check_integrity()
        assert max(served.values()) - min(served.values()) <= 2 * largest


def test_nobody_saves_up_turns() -> None:
    queue: FairQueue[Entry] = FairQueue()
    for _ in range(100):
        queue.push("old", Entry("old", 10))
    for _ in range(50):
        tenant, entry = next(queue.in_turn())
        queue.serve(tenant, entry, 10)
    for _ in range(20):
        queue.push("new", Entry("new", 10))
    order = []
    for _ in range(20):
        tenant, entry = next(queue.in_turn())
        queue.serve(tenant, entry, 10)
        order.append(tenant)
    assert order.count("old") == order.count("new") == 10


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "serve", "serve_later", "remove"]),
            st.sampled_from("abc"),
            st.integers(0, 100),
        ),
        max_size=80,
    )
)
def test_nothing_is_lost_and_order_within_a_tenant_is_kept(steps: list) -> None:
    queue: FairQueue[Entry] = FairQueue()
    model: dict[str, list[Entry]] = defaultdict(list)
    for kind, tenant, number in steps:
        if kind == "push":
            entry = Entry(tenant, number + 1)
            queue.push(tenant, entry)
            model[tenant].append(entry)
        elif kind == "remove" and model[tenant]:
            entry = model[tenant].pop(number % len(model[tenant]))
            assert queue.remove(tenant, entry)
            assert not queue.remove(tenant, entry)
            assert not queue.serve(tenant, entry, 1)
        elif kind.startswith("serve"):
            skip = number % 3 if kind == "serve_later" else 0
            for index, (name, entry) in enumerate(queue.in_turn()):
                if index == skip:
                    assert queue.serve(name, entry, entry.cost)
                    model[name].remove(entry)
        queue.check_integrity()
        given_out: dict[str, list[Entry]] = defaultdict(list)
        for name, entry in queue.in_turn():
            given_out[name].append(entry)
        assert {k: v for k, v in model.items() if v} == dict(given_out)
        assert len(queue) == sum(map(len, model.values()))


def test_tenants_that_are_gone_are_forgotten() -> None:
    queue: FairQueue[Entry] = FairQueue()
    queue.push("stays", Entry("stays", 1))
    for number in range(5000):
        entry = Entry(str(number), 1)
        queue.push(str(number), entry)
        queue.serve(str(number), entry, 1)
    assert len(queue._served) <= 2 * (1 + MAX_GONE)
