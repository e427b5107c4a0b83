"""Secrets are read from where the configuration says, and shown nowhere."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import msgspec
import pytest

from octavo.gateway.secret import Secret, decode_hook

if TYPE_CHECKING:
    from pathlib import Path


class Section(msgspec.Struct):
    """Has one."""

    key: Secret


def read(written: object) -> Secret:
    """As the configuration reads it."""
    return msgspec.convert({"key": written}, Section, dec_hook=decode_hook).key


def test_from_the_environment_a_file_or_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOME_KEY", "hidden")
    (tmp_path / "key").write_text("hidden\n")
    assert read("${SOME_KEY}").reveal() == "hidden"
    assert read(f"file:{tmp_path}/key").reveal() == "hidden"
    assert read("hidden") == read("${SOME_KEY}")
    assert hash(read("hidden")) == hash(read("${SOME_KEY}"))
    assert read("a-${SOME_KEY}-b").reveal() == "a-hidden-b"
    assert read("hidden") != "hidden"


def test_it_is_shown_nowhere() -> None:
    secret = read("hidden")
    section = Section(secret)
    shown = f"{secret} {secret!r} {secret!s} {section} {[secret]} {[secret]!s}"
    assert "hidden" not in shown
    with pytest.raises(TypeError):
        msgspec.json.encode(section)
    with pytest.raises(TypeError):
        pickle.dumps(secret)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("${NO_SUCH_NAME_HERE}", "the environment has no NO_SUCH_NAME_HERE"),
        ("file:/no/such/file", "cannot read /no/such/file: No such file"),
        ("", "is empty"),
        ("${EMPTY_NAME}", "is empty"),
        ("hidden\nX-Evil: 1", "one line of printable ASCII"),
        ("hiddén", "one line of printable ASCII"),
        (3, "must be text"),
    ],
)
def test_what_is_wrong_is_said_without_the_secret(
    written: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPTY_NAME", "")
    with pytest.raises(msgspec.ValidationError, match=message) as caught:
        read(written)
    assert "hidd" not in str(caught.value)


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("x" * 70_000)
    with pytest.raises(msgspec.ValidationError, match="one line"):
        read(f"file:{tmp_path}/key")
