from __future__ import annotations

import stat
from pathlib import Path

import pytest

from octavo.config import ServerConfig
from octavo.errors import ConfigError
from octavo.serving.folders import LOCK, PREFIX, run_folder, with_state_dir


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_it_is_private_and_gone_at_the_end(temporary: Path) -> None:
    with run_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        config = with_state_dir(ServerConfig(), folder)
        assert config.state_dir is not None
        assert stat.S_IMODE(Path(config.state_dir).stat().st_mode) == 0o700
        (Path(config.state_dir) / "answers").write_text("private")
    assert list(temporary.iterdir()) == []


def test_the_dead_are_swept_and_the_living_are_not(temporary: Path) -> None:
    dead = temporary / f"{PREFIX}dead"
    dead.mkdir()
    (dead / LOCK).touch()
    (dead / "secret").write_text("private")
    foreign = temporary / f"{PREFIX}without-a-lock"
    foreign.mkdir()
    with run_folder() as first, run_folder() as second:
        assert first.is_dir()
        assert second.is_dir()
        assert not dead.exists()
        assert foreign.exists()


def test_a_folder_that_is_asked_for_stays(temporary: Path) -> None:
    asked = temporary / "deep" / "state"
    with run_folder() as folder:
        config = with_state_dir(ServerConfig(state_dir=str(asked)), folder)
        assert config.state_dir == str(asked)
    assert asked.is_dir()


def test_a_folder_that_cannot_be_had(temporary: Path) -> None:
    (temporary / "file").touch()
    with run_folder() as folder, pytest.raises(ConfigError, match="--state-dir"):
        with_state_dir(ServerConfig(state_dir=str(temporary / "file")), folder)
