from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from octavo.gateway.config import parse
from octavo.gateway.config_schema import structs
from scripts import gateway_config_docs as docs

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_page_and_schema_are_what_the_structs_say() -> None:
    assert docs.TARGET == ROOT / "docs" / "gateway-config.md"
    assert docs.TARGET.read_text() == docs.render(), "run `make docs`"
    assert docs.SCHEMA.read_text() == docs.render_schema(), "run `make docs`"


def test_every_field_is_there() -> None:
    text = docs.render()
    for kind in structs():
        rows = text.split(f"\n## {kind.__name__}\n")[1].split("\n## ")[0]
        for field in msgspec.structs.fields(kind):
            assert f"\n| `{field.encode_name}` | " in rows


def test_the_example_is_a_good_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    assert docs.EXAMPLE in docs.TARGET.read_text()
    assert parse(docs.EXAMPLE.encode())[1] == []
