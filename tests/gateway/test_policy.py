"""Where calls go: rules, canaries, shadows, health, load and affinity, by the configuration."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ModelNotServedError, NotAllowedError
from octavo.gateway.config import GatewayConfig, parse
from octavo.gateway.key_scopes import check_scopes
from octavo.gateway.model import Call, KeyInfo, Target
from octavo.gateway.policy import Router, route

BASE = """\
backends:
  a: {url: "http://127.0.0.1:1", models: {m: {}}}
  b: {url: "http://127.0.0.1:2", models: {m: {}}}
  c: {url: "http://127.0.0.1:3", models: {m: {}, big: {}, "org/name": {}}}
tiers:
  small: {targets: [a/m, b/m], judge: sure}
  three: {targets: [a/m, b/m, c/m]}
  large: {targets: [c/big], fallbacks: [c/org/name]}
judges:
  sure: {kind: refusal}
"""
A, B, C = (Target(name, "m") for name in "abc")
BIG = Target("c", "big")


class View:
    """Health and load as given."""

    def __init__(
        self, loads: dict[Target, float] | None = None, dead: set[Target] | None = None
    ) -> None:
        self.loads = loads or {}
        self.dead = dead or set()

    def is_usable(self, target: Target) -> bool:
        return target not in self.dead

    def load(self, target: Target) -> float:
        return self.loads.get(target, 0.0)


WELL = View()


@cache
def config(text: str) -> GatewayConfig:
    made, problems = parse((BASE + text).encode())
    assert made is not None, problems
    return made


def call(model: str = "assistant", request_id: str = "r", **fields: Any) -> Call:
    return Call(
        request_id=request_id,
        arrived=0.0,
        path="/v1/chat/completions",
        model=model,
        body={},
        **{"route": "chat", **fields},
    )


def plan_rule(text: str, asked: Call) -> str:
    return route(asked, config(text), WELL, WELL).rule


def test_names() -> None:
    router = Router(config("models: {assistant: {tiers: [small, large], max_cost: 0.25}}"))
    plan = router.route(call(), WELL, WELL)
    assert plan.rule == "model:assistant"
    assert [(tier.name, tier.judge) for tier in plan.tiers] == [("small", "sure"), ("large", "")]
    assert {*plan.tiers[0].targets} == {A, B}
    assert plan.tiers[1].targets == (BIG, Target("c", "org/name"))
    assert plan.max_cost_nano == 250_000_000
    assert router.model_names == ["assistant", "big", "m", "org/name"]
    implicit = router.route(call("m"), WELL, WELL)
    assert {*implicit.tiers[0].targets} == {A, B, C}
    with pytest.raises(ModelNotServedError) as caught:
        router.route(call("nothing"), WELL, WELL)
    assert caught.value.code == "model_not_found"


HIDDEN = """
routing: {serve_backend_models: false, trust_tenant: TRUST}
models: {assistant: {tiers: [small]}}
rules:
  - {name: a, when: {models: [of-key], keys: ["k*"]}, tiers: [large]}
  - {name: b, when: {models: [of-team, "any-*"], teams: [blue]}, tiers: [large]}
  - {name: c, when: {models: [of-tenant], tenants: [acme]}, tiers: [large]}
  - {name: d, when: {models: [of-feature], features: ["search-*"]}, tiers: [large]}
  - {name: e, when: {models: [of-route], routes: [completions]}, tiers: [large]}
  - {name: f, when: {models: [of-stream, of-key], stream: true, teams: [blue]}, tiers: [large]}
"""
KEYS = [
    KeyInfo(key_id="k1"),
    KeyInfo(key_id="x1", team="blue", tenant="acme", features=("search-1", "chat")),
    KeyInfo(key_id="x2", tenant="other", features=("chat",), routes=("chat",)),
    KeyInfo(key_id="x3", features=("sea*",), routes=("completions", "chat")),
    KeyInfo(key_id="k2", models=("of-*",)),
    KeyInfo(key_id="k3", models=("assistant", "of-team")),
]


@pytest.mark.parametrize("trust", ["true", "false"])
@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.key_id)
def test_nobody_is_told_of_models_that_he_is_not_served(key: KeyInfo, trust: str) -> None:
    """Compared with what becomes of every request that the key may make."""
    router = Router(config(HIDDEN.replace("TRUST", trust)))
    tenants = {key.tenant} if key.tenant or trust == "false" else {"", "acme"}
    served = set()
    for name in router.model_names:
        for route_ in key.routes or ("chat", "completions"):
            for feature in {f.replace("*", "rch-1") for f in key.features} or ("", "search-1"):
                for tenant, stream in ((t, s) for t in tenants for s in (True, False)):
                    asked = call(
                        name, key=key, route=route_, feature=feature, tenant=tenant, stream=stream
                    )
                    try:
                        check_scopes(asked)
                        router.route(asked, WELL, WELL)
                    except (ModelNotServedError, NotAllowedError):
                        continue
                    served.add(name)
    assert router.names_for(key) == sorted(served)
    assert "any-*" not in router.names_for(key)


def test_backends_names_can_be_kept_from_callers() -> None:
    text = "routing: {serve_backend_models: false}\nmodels: {assistant: {tiers: [small]}}"
    router = Router(config(text))
    assert router.model_names == ["assistant"]
    with pytest.raises(ModelNotServedError):
        router.route(call("m"), WELL, WELL)


CONDITIONS = [
    ("models: [assist*]", call(), call("big")),
    ("models: [other]", call("other"), call("m")),
    ("routes: [embeddings]", call(route="embeddings"), call()),
    ("features: [sup*]", call(feature="support"), call(feature="Support")),
    ("tenants: [acme]", call(tenant="acme"), call()),
    ("teams: [x]", call(key=KeyInfo(key_id="k", team="x")), call(key=KeyInfo(key_id="x"))),
    ("keys: ['k?']", call(key=KeyInfo(key_id="k1")), call(key=KeyInfo(key_id="k12"))),
    ("headers: {X-Tier: large}", call(headers={"x-tier": "large"}), call()),
    ("headers: {X-Tier: '?*'}", call(headers={"x-tier": "any"}), call(headers={"x-tier": ""})),
    ("tags: {intent: classify-*}", call(tags={"intent": "classify-mail"}), call()),
    ("min_prompt_chars: 100", call(num_prompt_chars=100), call(num_prompt_chars=99)),
    ("max_prompt_tokens: 50", call(num_prompt_tokens=50), call(num_prompt_tokens=51)),
    ("has_tools: true", call(has_tools=True), call()),
    ("has_schema: false", call(), call(has_schema=True)),
    ("has_images: true", call(has_images=True), call()),
    ("stream: true", call(stream=True), call()),
    ("languages: [de, fr]", call(language="fr"), call(language="")),
]


@pytest.mark.parametrize(("when", "meets", "fails"), CONDITIONS, ids=[c[0] for c in CONDITIONS])
def test_conditions(when: str, meets: Call, fails: Call) -> None:
    text = (
        "models: {assistant: {tiers: [small]}}\n"
        f"rules: [{{name: rule, when: {{{when}}}, tiers: [large]}}]"
    )
    assert plan_rule(text, meets) == "rule"
    assert plan_rule(text, fails).startswith(("model:", "backend-model:"))


def test_all_conditions_must_hold_and_the_first_rule_decides() -> None:
    text = """\
models: {assistant: {tiers: [small]}}
rules:
  - {name: both, when: {has_tools: true, stream: true}, tiers: [large]}
  - {name: tools, when: {has_tools: true}, tiers: [large]}
  - {name: rest, tiers: [small]}
"""
    assert plan_rule(text, call(has_tools=True, stream=True)) == "both"
    assert plan_rule(text, call(has_tools=True)) == "tools"
    assert plan_rule(text, call()) == "rest"
    with pytest.raises(ModelNotServedError):  # a rule for all takes no name that nothing has
        plan_rule(text, call("typo"))


def test_canaries_take_their_share() -> None:
    router = Router(
        config("""\
models:
  assistant:
    tiers: [small]
    canaries:
      - {name: new, percent: 20, tiers: [large]}
      - {name: newer, percent: 40, tiers: [large, small]}
    shadows: [{target: c/big, percent: 12.5}]
""")
    )
    plans = [router.route(call(request_id=str(index)), WELL, WELL) for index in range(4000)]
    counts = Counter(plan.rule for plan in plans)
    assert counts["model:assistant/new"] == pytest.approx(800, abs=130)
    assert counts["model:assistant/newer"] == pytest.approx(1600, abs=155)
    assert sum(plan.shadows == (BIG,) for plan in plans) == pytest.approx(500, abs=105)
    again = [router.route(call(request_id=str(index)), WELL, WELL) for index in range(100)]
    assert [plan.rule for plan in again] == [plan.rule for plan in plans[:100]]
    assert [plan.shadows for plan in again] == [plan.shadows for plan in plans[:100]]


@pytest.mark.parametrize("by", ["session", "key", "tenant"])
def test_canaries_of_a_whole_session(by: str) -> None:
    router = Router(
        config(f"""\
models:
  assistant: {{tiers: [small], canaries: [{{name: new, percent: 50, tiers: [large], by: {by}}}]}}
""")
    )
    sides = set()
    for unit in map(str, range(30)):
        fields = {
            "session": {"session_id": unit},
            "key": {"key": KeyInfo(key_id=unit)},
            "tenant": {"tenant": unit},
        }[by]
        rules = {
            router.route(call(request_id=f"{unit}-{index}", **fields), WELL, WELL).rule
            for index in range(5)
        }
        assert len(rules) == 1
        sides |= rules
    assert len(sides) == 2
    alone = Counter(
        router.route(call(request_id=str(index)), WELL, WELL).rule for index in range(200)
    )
    assert min(alone.values()) > 50


def test_all_and_none_of_the_requests() -> None:
    text = (
        "models: {{assistant: {{tiers: [small], "
        "canaries: [{{name: x, percent: {}, tiers: [large]}}]}}}}"
    )
    for percent, rules in ((0, {"model:assistant"}), (100, {"model:assistant/x"})):
        router = Router(config(text.format(percent)))
        ids = map(str, range(300))
        assert {router.route(call(request_id=r), WELL, WELL).rule for r in ids} == rules


def test_what_is_not_usable_is_left_out_unless_nothing_is() -> None:
    made = config("models: {assistant: {tiers: [small, large]}}")
    small, large = route(call(), made, View(dead={A, BIG}), WELL).tiers
    assert small.targets == (B,)
    assert large.targets == (Target("c", "org/name"),)
    small, large = route(call(), made, View(dead={A, B, BIG, Target("c", "org/name")}), WELL).tiers
    assert {*small.targets} == {A, B}
    assert large.targets == (BIG, Target("c", "org/name"))


def three(balance: str = "affinity", **more: Any) -> Router:
    made = config("models: {assistant: {tiers: [three]}}")
    tier = msgspec.structs.replace(made.tiers["three"], balance=balance, **more)
    return Router(msgspec.structs.replace(made, tiers={**made.tiers, "three": tier}))


def first(router: Router, view: View = WELL, **fields: Any) -> Target:
    return router.route(call(**fields), view, view).tiers[0].targets[0]


def test_other_balances() -> None:
    view = View({A: 5.0, B: 1.0, C: 3.0})
    assert three("order").route(call(), view, view).tiers[0].targets == (A, B, C)
    assert three("load").route(call(), view, view).tiers[0].targets == (B, C, A)
    router = three("random")
    firsts = Counter(first(router, view, request_id=str(index)) for index in range(900))
    assert min(firsts[t] for t in (A, B, C)) > 200
    busy = three("load")
    ties = Counter(first(busy, request_id=str(index)) for index in range(300))
    assert len(ties) == 3


def chain(*words: str) -> tuple[bytes, ...]:
    return tuple("/".join(words[: index + 1]).encode() for index in range(len(words)))


def test_conversations_stay_where_they_began() -> None:
    """Without a session's name: a longer prompt goes where its beginning has been."""
    router = three()
    for number in range(40):
        words = [f"{number}"]
        home = first(router, block_hashes=chain(*words))
        for turn in range(12):
            words.append(str(turn))
            assert first(router, block_hashes=chain(*words), request_id=str(turn)) == home


def test_sessions_stay_whatever_they_say() -> None:
    router = three()
    homes = {
        session: first(router, session_id=session, block_hashes=chain(session))
        for session in map(str, range(40))
    }
    assert len({*homes.values()}) == 3
    for session, home in homes.items():
        assert first(router, session_id=session, block_hashes=chain("else", session)) == home
    apart = three(sticky_sessions=False)
    moved = {first(apart, session_id="s", block_hashes=chain(str(index))) for index in range(20)}
    assert len(moved) > 1


def test_a_short_common_beginning_gathers_nobody() -> None:
    """A system prompt that all share is a small part of each prompt."""
    router = three()
    homes = Counter(
        first(router, block_hashes=chain("system", *(f"{n}-{i}" for i in range(9))))
        for n in range(90)
    )
    assert min(homes[t] for t in (A, B, C)) > 12
    gathered = Counter(
        first(router, block_hashes=chain("doc", "doc", "doc", f"question-{n}")) for n in range(30)
    )
    assert len(gathered) == 1


def test_few_documents_are_spread_evenly() -> None:
    """By hash alone, nine documents fall upon three replicas as they like."""
    for attempt in range(20):
        router = three()
        homes = Counter(
            first(router, block_hashes=chain(*(f"{attempt}-{n}-{i}" for i in range(4))))
            for n in range(9)
        )
        assert max(homes.values()) <= 4, homes
        assert len(homes) == 3


def test_gateways_agree_without_speaking() -> None:
    for number in range(50):
        hashes = chain(*(f"{number}-{i}" for i in range(5)))
        assert first(three(), block_hashes=hashes) == first(three(), block_hashes=hashes)


def test_a_new_configuration_can_take_the_memory_over() -> None:
    old = three()
    hashes = chain("x", "y")
    home = first(old, View({A: 90.0, B: 90.0}), block_hashes=hashes)
    assert home == C  # the others have no room
    made = config("models: {assistant: {tiers: [small]}}")
    assert Router(made, old.memory).memory is old.memory
    assert len(old.memory) == 2
    smaller = config("routing: {memory_blocks: 1}\nmodels: {assistant: {tiers: [small]}}")
    assert len(Router(smaller, old.memory).memory) == 1
    old.memory.check_integrity()


calls = st.builds(
    call,
    request_id=st.text(max_size=4),
    session_id=st.sampled_from(["", "s", "t"]),
    block_hashes=st.lists(st.sampled_from("ab"), max_size=5).map(lambda words: chain(*words)),
)
loads = st.fixed_dictionaries({t: st.integers(0, 30).map(float) for t in (A, B, C)})
steps = st.lists(st.tuples(calls, loads, st.sets(st.sampled_from([A, B, C]))), max_size=15)


@settings(deadline=None)
@given(steps)
def test_routing_is_deterministic(
    script: list[tuple[Call, dict[Target, float], set[Target]]],
) -> None:
    """The same calls under the same conditions get the same plans, in every process."""
    one, other = three(), three()
    for asked, busy, dead in script:
        view = View(busy, dead)
        assert one.route(asked, view, view) == other.route(asked, view, view)
    one.memory.check_integrity()


@settings(deadline=None)
@given(steps, st.floats(1, 3), st.integers(0, 6))
def test_the_load_bound_holds(
    script: list[tuple[Call, dict[Target, float], set[Target]]], bound: float, least: int
) -> None:
    """Nobody gets a request who has his share of the load, times the bound, whatever is remembered;
    and every usable target is in the plan once."""
    router = three(load_bound=bound, min_load=least)
    for asked, busy, dead in script:
        view = View(busy, dead)
        (tier,) = router.route(asked, view, view).tiers
        usable = {A, B, C} - dead or {A, B, C}
        assert sorted(tier.targets, key=str) == sorted(usable, key=str)
        chosen = tier.targets[0]
        mean = (sum(busy[t] for t in usable) + 1) / len(usable)
        assert len(usable) == 1 or busy[chosen] < max(least, -(-bound * mean // 1))
