from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.planning.cost_price_file import read_price_file

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
currency: EUR
date: 2026-11-01
models:
  ours:
    input: 0.1
    cached_input: 0.025
    output: 2.00
    per_request: 1e-4
    above:
      - tokens: 200000
        input: 0.2
        output: 3
  "other: one":
    input: 0
    output: 1
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml(tmp_path: Path) -> None:
    prices = read_price_file(write(tmp_path / "p.yaml", GOOD))
    assert list(prices) == ["ours", "other: one"]
    ours = prices["ours"]
    assert (ours.currency, ours.source) == ("EUR", "p.yaml of 2026-11-01")
    assert ours.per_request == Decimal("0.0001")
    assert [(b.above, b.input, b.cached_input, b.output) for b in ours.bands] == [
        (0, Decimal("0.1"), Decimal("0.025"), Decimal(2)),
        (200_000, Decimal("0.2"), None, Decimal(3)),
    ]


def test_json_is_yaml(tmp_path: Path) -> None:
    text = json.dumps({"models": {"a": {"input": 0.1, "output": 1.5e1}}}, indent=1)
    (price,) = read_price_file(write(tmp_path / "p.json", text)).values()
    assert (price.bands[0].input, price.bands[0].output) == (Decimal("0.1"), Decimal(15))
    assert price.currency == "USD"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("input: 0.1\n", "input: free\n", 5, "models.ours.input must be a number, got 'free'"),
        ("input: 0.1\n", "input: -1\n", 5, "models.ours.input must be in 0"),
        ("input: 0.1\n", "input: .nan\n", 5, "must be a number"),
        ("input: 0.1\n", "input: 1e99\n", 5, "must be in 0"),
        ("input: 0.1\n", "input: [1]\n", 5, "must be a word"),
        ("output: 2.00\n", "ouput: 2.00\n", 7, "knows no `ouput`, only above, cached_input"),
        ("output: 2.00\n", "input: 2.00\n", 7, "has `input` twice"),
        ("    output: 2.00\n", "", 5, "models.ours needs `output`"),
        ("tokens: 200000", "tokens: 0", 10, r"above\[0\].tokens must be a whole number above 0"),
        ("tokens: 200000", "tokens: 1.5", 10, "whole number"),
        ("- tokens: 200000\n        input", "- input", 10, "needs `tokens`"),
        ("EUR", "euro", 1, "three capital letters"),
        ("2026-11-01", "yesterday", 2, "date must be written as"),
        ("models:", "modells:", 3, "knows no `modells`"),
        ('"other: one":', '"other: one', 16, "not YAML"),
        ("input: 0.1\n", "input: \t: {\n", 5, "not YAML"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in GOOD
    path = write(tmp_path / "p.yaml", GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=words) as caught:
        read_price_file(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize("text", ["", "3", "- a", "models: {}", "models: 3", "&a [*a]", "a: *b"])
def test_what_is_no_list(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"p\.yaml"):
        read_price_file(write(tmp_path / "p.yaml", text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_price_file(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_price_file(tmp_path / "b.yaml")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_text_is_a_list_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever stands in the place of a few characters."""
    begin = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(begin, min(len(GOOD), begin + 12)))
    middle = data.draw(st.text(alphabet="abc019.-:[]{}&*!|>'\"#%@, \n\t", max_size=8))
    path = write(tmp_path_factory.getbasetemp() / "any.yaml", GOOD[:begin] + middle + GOOD[end:])
    try:
        prices = read_price_file(path)
    except ConfigError:
        return
    assert all(band.input >= 0 for price in prices.values() for band in price.bands)
