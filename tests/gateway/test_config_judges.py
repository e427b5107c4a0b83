"""What the sections of judges take, and what they refuse."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from octavo.gateway.config import parse
from octavo.gateway.config_judges import EscalationSection, JudgeSection, judge_problems
from octavo.gateway.secret import decode_hook


def read(section: dict[str, Any]) -> Any:
    return msgspec.convert(section, JudgeSection, dec_hook=decode_hook)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "missing required field `kind`"),
        ({"kind": "vibes"}, "Invalid value 'vibes'"),
        ({"kind": "length", "min_char": 1}, "unknown field `min_char`"),
        ({"kind": "length", "hold": "some"}, "Invalid enum value 'some'"),
        ({"kind": "length", "min_chars": 5, "max_chars": 4}, "max_chars must not be below"),
        ({"kind": "logprob"}, "needs `mean` or `minimum`"),
        ({"kind": "logprob", "mean": 0.5}, "mean must not be above 0"),
        ({"kind": "logprob", "minimum": float("nan")}, "minimum must be a finite number"),
        ({"kind": "regex"}, "needs `must` or `must_not`"),
        ({"kind": "regex", "must": ["ok", "(a"]}, r"must\[1\] is no regular expression: missing"),
        ({"kind": "regex", "must_not": ["a" * 5000]}, "at most 4096 characters"),
        ({"kind": "regex", "must": ["a"], "time_limit": 0}, "time_limit must be above 0"),
        ({"kind": "refusal", "phrases": [" "]}, "phrases must not be empty"),
        (
            {"kind": "model", "tier": "t", "passes_at": 1, "prompt": "Good?"},
            r"must have \{answer\}",
        ),
        ({"kind": "model", "tier": "t", "passes_at": 1, "score": r"\d"}, "must have a group"),
        ({"kind": "eval", "function": "a b", "passes_at": 1}, "must be `module:function`"),
        ({"kind": "service", "url": "ftp://x/", "passes_at": 1}, "url must be http"),
        ({"kind": "service", "url": "http://x:0/", "passes_at": 1}, "url must be http"),
        ({"kind": "service", "url": "http://u:p@x/", "passes_at": 1}, "user or password"),
        ({"kind": "service", "url": "http://169.254.169.254/", "passes_at": 1}, "link-local"),
        ({"kind": "service", "url": "http://[fe80::1]/", "passes_at": 1}, "link-local"),
        ({"kind": "service", "url": "http://x/a b", "passes_at": 1}, "printable ASCII"),
        (
            {"kind": "service", "url": "http://x/", "passes_at": 1, "headers": {"a b": "c"}},
            "no header's name",
        ),
        ({"kind": "all", "of": []}, "of must name at least one judge"),
    ],
)
def test_what_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        read(section)


def test_secrets_of_a_service_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_KEY", "abc123")
    headers = {"Authorization": "Bearer ${SCORE_KEY}"}
    section = read({"kind": "service", "url": "http://x/", "passes_at": 1, "headers": headers})
    assert section.headers["Authorization"].reveal() == "Bearer abc123"
    assert "abc123" not in repr(section)


def test_what_is_wrong_between_judges() -> None:
    sections = {
        "grader": {"kind": "model", "tier": "big", "passes_at": 7},
        "a": {"kind": "all", "of": ["grader", "b"]},
        "b": {"kind": "any", "of": ["a", "missing"]},
        "self": {"kind": "any", "of": ["self"]},
        "fine": {"kind": "any", "of": ["grader", "grader"]},
    }
    judges = {name: read(section) for name, section in sections.items()}
    assert list(judge_problems(judges, {"small"})) == [
        (("grader", "tier"), "there is no tier named 'big'"),
        (("a", "of", 1), "the judge 'b' rests on 'a' itself"),
        (("b", "of", 0), "the judge 'a' rests on 'b' itself"),
        (("b", "of", 1), "there is no judge named 'missing'"),
        (("self", "of", 0), "the judge 'self' rests on 'self' itself"),
    ]
    assert list(judge_problems({"fine": judges["grader"]}, {"big"})) == []


@pytest.mark.parametrize(
    "section", [{"max_held_bytes": 1}, {"max_shadows": -1}, {"shadow_deadline": 0}]
)
def test_escalations_that_are_none(section: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match=next(iter(section))):
        msgspec.convert(section, EscalationSection)


@pytest.mark.parametrize("name", ["shadow", "judge"])
def test_tiers_that_are_the_gateways_own(name: str) -> None:
    text = "backends: {a: {url: 'http://x', models: {m: {}}}}\ntiers:\n  %s: {targets: [a/m]}\n"
    config, problems = parse((text % name).encode())
    assert config is None
    assert [str(problem) for problem in problems] == [
        f"3:3: tiers.{name}: this name is the gateway's own, for records: take another"
    ]
    config, problems = parse((text % "small").encode())
    assert config is not None
    assert problems == []
