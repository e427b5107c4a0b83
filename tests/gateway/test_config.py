"""The gateway's configuration as a whole: what is wrong is told, all of it, where it stands."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.gateway.config import (
    MAX_BYTES,
    GatewayConfig,
    GatewayConfigError,
    check_config,
    load_config,
    parse,
)
from octavo.gateway.config_routes import TargetSection
from octavo.gateway.secret import Secret, decode_hook

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
x-price: &price {input: 0.15, output: 0.60}
backends:
  own-a:
    url: http://127.0.0.1:8001
    kind: octavo
    models:
      smollm2: {context_length: 8192, price: {device_hour: 1.5}}
  own-b:
    url: http://127.0.0.1:8002
    kind: octavo
    models:
      smollm2: {context_length: 8192, price: {device_hour: 1.5}}
  cloud:
    url: https://api.example.com/v1
    api_key: ${CLOUD_KEY}
    models:
      gpt-4.1: {context_length: 1000000, price: *price}
      vendor/other: {price: {<<: *price, output: 2}}
tiers:
  small:
    targets: [own-a/smollm2, {backend: own-b, model: smollm2, weight: 2}]
    judge: sure
  large:
    targets: [cloud/gpt-4.1, cloud/vendor/other]
judges:
  sure: {kind: logprob, mean: -0.7}
models:
  assistant: {tiers: [small, large], max_cost: 0.05}
rules:
  - name: norwegian
    when: {languages: [no]}
    tiers: [large]
limits:
  rules:
    slow: {requests_per_minute: 5, holds_for: named}
keys:
  inline:
    - {id: alice, key: "0123456789abcdef", limits: [slow]}
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_KEY", "sk-secret-of-the-cloud")


def problems(text: str) -> list[tuple[int, int, str, str]]:
    config, found = parse(text.encode())
    assert (config is None) == bool(found)
    return [tuple(problem) for problem in found]


def test_a_good_configuration(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(GOOD)
    config = load_config(path)
    assert check_config(path) == []
    assert config.tiers["small"].targets == (
        "own-a/smollm2",
        TargetSection(backend="own-b", model="smollm2", weight=2.0),
    )
    assert config.rules[0].when.languages == ("no",)  # and not False, as YAML 1.1 has it
    assert config.models["assistant"].max_cost == Decimal("0.05")
    merged = config.backends["cloud"].models["vendor/other"].price
    assert merged is not None
    assert (merged.input, merged.output) == (Decimal("0.15"), Decimal(2))
    key = config.backends["cloud"].api_key
    assert isinstance(key, Secret)
    assert key.reveal() == "sk-secret-of-the-cloud"
    assert "sk-secret" not in repr(config)


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="PyYAML without its parser in C")
def test_both_parsers_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        GOOD,
        *(GOOD.replace(before, after, 1) for before, after, _, _ in [*CASES.values()][::4]),
    ]
    by_c = [parse(text.encode()) for text in texts]
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert [parse(text.encode()) for text in texts] == by_c


def test_it_means_what_msgspec_reads() -> None:
    """Our reader and msgspec's make the same of a file that says everything in full."""
    config, found = parse(GOOD.encode())
    assert not found
    plain = yaml.safe_load(GOOD.replace("[no]", '["no"]'))
    del plain["x-price"]
    theirs = msgspec.convert(plain, GatewayConfig, dec_hook=decode_hook, strict=False)
    assert config == theirs


def test_every_error_has_its_line_column_and_field() -> None:
    text = """\
backends:
  own:
    url: ftp://nowhere
    modles: {m: {}}
  cloud:
    url: https://api.example.com/v1
    kind: opnai
    models:
      m: {context_length: many}
tiers:
  small: {targets: [cloud/n, clod/m]}
  large: {targets: [], judge: sure}
models:
  assistant: {tiers: [smal]}
rules:
  - name: r
    tiers: [small]
    wen: {}
keys: {required: perhaps}
"""
    found = {(line, path): message for line, _, path, message in problems(text)}
    assert found == {
        (3, "backends.own.url"): "must begin with http://, https:// or unix:/",
        (4, "backends.own.modles"): "there is no such field (did you mean models?)",
        (7, "backends.cloud.kind"): "must be one of octavo, vllm, openai (did you mean openai?)",
        (9, "backends.cloud.models.m.context_length"): "must be a whole number, got 'many'",
        (11, "tiers.small.targets[0]"): "there is no model at backend cloud named 'n'",
        (11, "tiers.small.targets[1]"): "there is no backend in `backends` named 'clod' (did you "
        "mean cloud?)",
        (12, "tiers.large.targets"): "must have 1 or more",
        (14, "models.assistant.tiers[0]"): "there is no tier in `tiers` named 'smal' (did you mean "
        "small?)",
        (18, "rules[0].wen"): "there is no such field (did you mean when?)",
        (19, "keys.required"): "must be true or false, got 'perhaps'",
    }
    columns = {line: column for line, column, _, _ in problems(text)}
    for line, column in columns.items():
        assert 1 <= column <= len(text.splitlines()[line - 1])
    assert columns[7] == len("    kind: ") + 1


def test_messages_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("backends: {a: {url: 5, models: {m: {}}}}\nrules: 3\n")
    with pytest.raises(GatewayConfigError) as caught:
        load_config(path)
    assert check_config(path) == str(caught.value).splitlines()
    assert check_config(path) == [
        f"{path}:1:21: backends.a.url: must begin with http://, https:// or unix:/",
        f"{path}:2:8: rules: must be a list: `[a, b]`, or a line `- a` for each",
    ]
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")
    assert check_config(tmp_path)[0].startswith("cannot read")


CASES = {
    "tier without judge's name": (
        "judge: sure",
        "judge: shure",
        "tiers.small.judge",
        "did you mean sure?",
    ),
    "limit that is nowhere": ("[slow]", "[slw]", "keys.inline[0].limits[0]", "did you mean slow?"),
    "target twice": (
        "large:\n    targets: [cloud/gpt-4.1, ",
        "large:\n    targets: [cloud/gpt-4.1, cloud/gpt-4.1, ",
        "tiers.large.targets[1]",
        "twice",
    ),
    "target without model": (
        "targets: [own-a/smollm2, ",
        "targets: [own-a, ",
        "tiers.small.targets[0]",
        "write backend/model",
    ),
    "model of a long target": (
        "model: smollm2, weight",
        "model: smolm2, weight",
        "tiers.small.targets[1].model",
        "smollm2",
    ),
    "unset variable": ("CLOUD_KEY", "NO_SUCH", "backends.cloud.api_key", "environment has no"),
    "variable outside secrets": (
        "https://api.example.com/v1",
        "${CLOUD_KEY}",
        "backends.cloud.url",
        "only secrets",
    ),
    "language that is not told": (
        "languages: [no]",
        "languages: [xx]",
        "rules[0].when.languages",
        "none that can be told",
    ),
    "rule without tier": ("tiers: [large]\nlim", "tiers: []\nlim", "rules[0].tiers", "1 or more"),
    "number out of bounds": (
        "requests_per_minute: 5",
        "requests_per_minute: 0",
        "limits.rules.slow.requests_per_minute",
        "at least 1",
    ),
    "weight out of bounds": ("weight: 2", "weight: -2", "tiers.small.targets[1].weight", "0.01"),
    "cost out of bounds": (
        "max_cost: 0.05",
        "max_cost: -1",
        "models.assistant.max_cost",
        "from 0 to",
    ),
    "judge of no kind": ("kind: logprob", "kind: logprobs", "judges.sure.kind", "did you mean"),
    "judge without kind": ("kind: logprob, ", "", "judges.sure", "needs `kind`"),
    "two currencies": (
        "price: *price}",
        "price: {input: 1, output: 1, currency: EUR}}",
        "backends.cloud.models.gpt-4.1",
        "counts in one currency",
    ),
    "name twice": ("  own-b:", "  own-a:", "backends.own-a", "is there twice, first in line 3"),
    "bad name": ("  large:", "  la rge:", "tiers.la rge", "must match"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_error(name: str) -> None:
    before, after, path, message = CASES[name]
    assert before in GOOD
    text = GOOD.replace(before, after, 1)
    found = problems(text)
    assert [problem for problem in found if problem[2] == path and message in problem[3]], found


def test_budgets_need_prices() -> None:
    """Where a hard budget holds; a soft one only tells, and one for other names holds nothing."""
    free = GOOD.replace(", price: *price}", "}")
    assert free != GOOD
    line = free.splitlines().index("      gpt-4.1: {context_length: 1000000}") + 1

    def found(budget: str) -> list[tuple[int, str]]:
        text = free + f"budgets: {{rules: {{team: {{cost: 5{budget}}}}}}}\n"
        return [(line, path) for line, _, path, message in problems(text) if "price" in message]

    where = [(line, "backends.cloud.models.gpt-4.1")]
    assert problems(free) == []
    assert found("") == where
    assert found(", models: [assist*]") == where
    assert found(", models: [gpt-4.1]") == where
    assert found(", models: [other]") == []
    assert found(", kind: soft") == []


@pytest.mark.parametrize("section", ["limits", "budgets"])
def test_stores_need_their_urls(section: str) -> None:
    text = GOOD.replace("limits:\n  rules", "limits:\n  store: redis\n  rules")
    if section == "budgets":
        text = GOOD + "budgets: {store: redis}\n"
    ((_, _, path, message),) = problems(text)
    assert (path, message.split(",")[0]) == (f"{section}.store", "needs `redis_url`")
    assert problems(text + "redis_url: redis://127.0.0.1:6379/0\n") == []


def test_unreachable_rules() -> None:
    rules = """\
rules:
  - {name: wide, when: {models: ["classify-*"], has_tools: true}, tiers: [large]}
  - {name: apart, when: {models: [classify-a]}, tiers: [large]}
  - {name: inside, when: {models: [classify-a], has_tools: true, stream: true}, tiers: [large]}
  - {name: wide, when: {min_prompt_chars: 10}, tiers: [large]}
  - {name: all, tiers: [large]}
  - {name: known, when: {models: [assistant]}, tiers: [large]}
  - {name: unknown, when: {models: [other]}, tiers: [large]}
"""
    text = GOOD[: GOOD.index("rules:\n  - name")] + rules
    found = [(line, path, message.split(":")[0]) for line, _, path, message in problems(text)]
    begin = text[: text.index(rules)].count("\n") + 1
    assert found == [
        (begin + 3, "rules[2]", "nothing reaches this rule"),
        (begin + 4, "rules[3].name", "rules[0] has the name 'wide' already"),
        (begin + 6, "rules[5]", "nothing reaches this rule"),
    ]


def test_what_is_no_yaml() -> None:
    assert problems("") == [(1, 1, "", "the file is empty: it needs `backends`")]
    assert problems("a: [1\nb: 2")[0][0] == 2
    assert problems("- 1")[0][:3] == (1, 1, "")
    assert "UTF-8" in parse(b"a: 1\nb: \xff")[1][0].message
    assert parse(b"a: 1\nb: \xff")[1][0].line == 2
    assert "longer than" in parse(b"#" * (MAX_BYTES + 1))[1][0].message
    deep = "x-a: 1\nbackends: " + "[" * 500 + "]" * 500
    assert problems(deep)


def test_anchors_are_no_bomb() -> None:
    """Each level doubles the one before it, and none can be read without end."""
    text = "x-0: &a0 [1]\n"
    for level in range(1, 30):
        text += f"x-{level}: &a{level} [*a{level - 1}, *a{level - 1}]\n"
    bomb = text + "backends: {a: {url: 'http://a', models: {m: {}}}}\n"
    assert problems(bomb) == []  # what nobody uses is not written out
    used = bomb + "judges: {j: {kind: json_schema, schema: {enum: *a29}}}\n"
    assert "anchors written out" in problems(used)[-1][3]
    loop = "backends: &b {a: *b}"
    assert problems(loop)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        *GatewayConfig.__struct_fields__,
                        "name",
                        "when",
                        "a",
                        "url",
                        "models",
                        "targets",
                        "tiers",
                        "kind",
                        "<<",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_yaml_is_read_or_refused(value: object) -> None:
    """Nothing but problems comes of what is no configuration, each with a place in the file."""
    text = yaml.safe_dump(value)
    config, found = parse(text.encode())
    assert (config is None) == bool(found)
    num_lines = text.count("\n") + 1
    assert all(1 <= problem.line <= num_lines and problem.message for problem in found)
