"""The JSON schema, by a validator that nobody here wrote, beside what the reader takes."""

from __future__ import annotations

from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from octavo.gateway.config import GatewayConfig, parse
from octavo.gateway.config_schema import about, field_texts, json_schema, structs
from tests.gateway.test_config import GOOD

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def errors(text: str) -> list[str]:
    return [error.json_path for error in VALIDATOR.iter_errors(yaml.safe_load(text))]


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_it_takes_what_the_reader_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_KEY", "sk-x")
    text = GOOD.replace("[no]", '["no"]')
    assert parse(text.encode())[1] == []
    assert errors(text) == []


CHANGES = [
    ("kind: octavo", "kind: octabo"),
    ("weight: 2", "weight: -2"),
    ("weight: 2", "wight: 2"),
    ("tiers: [large]\nlim", "tiers: []\nlim"),
    ("requests_per_minute: 5", "requests_per_minute: 0"),
    ("kind: logprob", "kind: logprobs"),
    ("context_length: 8192", "context_length: long"),
    ("  large:", "  la rge:"),
    ("id: alice", "id: al_ice"),
]


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=[after for _, after in CHANGES])
def test_it_refuses_what_the_reader_refuses(before: str, after: str) -> None:
    assert before in GOOD
    text = GOOD.replace(before, after, 1)
    assert parse(text.encode())[1]
    assert errors(text)


def test_every_field_is_told_of() -> None:
    """The docstring says something of each field, and of none that is not there."""
    found = structs()
    assert found[0] is GatewayConfig
    assert len(found) > 20
    for kind in found:
        names = {field.name for field in msgspec.structs.fields(kind)}
        texts = field_texts(kind)
        assert texts.keys() == names, kind.__name__
        assert all(text for text in texts.values()), kind.__name__
        assert about(kind).endswith((".", ":", "`")), kind.__name__
    schema = json_schema()
    for name, part in {"": schema, **schema["$defs"]}.items():
        fields: dict[str, Any] = part.get("properties", {})
        assert all("description" in f or "enum" in f for f in fields.values()), name
