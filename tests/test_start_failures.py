"""`octavo serve` when it cannot start: one line, exit code 1, within seconds, no traceback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import TinyLlama

MOST_S = 20.0


def start(*args: str) -> tuple[int, str]:
    """Exit code and standard error; what takes longer than MOST_S fails."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "octavo.cli.main", "serve", *args, "--port", "0"],
        capture_output=True,
        text=True,
        timeout=MOST_S,
        check=False,
    )
    assert time.perf_counter() - begin < MOST_S
    return done.returncode, done.stderr


def check(result: tuple[int, str], *words: str) -> None:
    code, stderr = result
    assert code == 1, stderr
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("octavo: error:")]
    assert len(errors) == 1, stderr
    for word in words:
        assert word in errors[0]


def test_no_such_model() -> None:
    check(start("no-such-model"), "no-such-model", "octavo pull")


def test_a_truncated_safetensors_file(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama(), folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    check(start(str(folder)), "model.safetensors")


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def unknown_architecture(folder: Path) -> None:
    change_config(folder, architectures=["MambaForCausalLM"])


def wrong_shape(folder: Path) -> None:
    change_config(folder, intermediate_size=128)


def one_layer_too_many(folder: Path) -> None:
    change_config(folder, num_hidden_layers=3)


def one_layer_too_few(folder: Path) -> None:
    change_config(folder, num_hidden_layers=1)


def unknown_rope(folder: Path) -> None:
    change_config(folder, rope_parameters={"rope_type": "spiral", "rope_theta": 1e4})


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def a_pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (unknown_architecture, "MambaForCausalLM"),
        (wrong_shape, "shape"),
        (one_layer_too_many, "missing"),
        (one_layer_too_few, "no such tensor"),
        (unknown_rope, "spiral"),
        (no_weights, "safetensors"),
        (a_pickle_only, "pickle"),
        (no_tokenizer, "tokenizer.json"),
    ],
)
def test_a_spoilt_folder(
    spoil: Callable[[Path], None], word: str, tiny_llama: TinyLlama, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama(), folder)
    spoil(folder)
    check(start(str(folder)), word)


@pytest.mark.model
def test_a_truncated_gguf_file(smollm2_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    with smollm2_path.open("rb") as whole:
        file.write_bytes(whole.read(20_000_000))
    check(start(str(file)), "cut.gguf")


def test_too_little_memory_for_the_context(tiny_llama: TinyLlama) -> None:
    result = start(str(tiny_llama()), "--kv-cache-memory", "20KiB", "--max-model-len", "256")
    check(result, "256 tokens", "--max-model-len", "--kv-cache-memory")


def test_a_context_that_the_model_does_not_have(tiny_llama: TinyLlama) -> None:
    check(start(str(tiny_llama()), "--max-model-len", "100000"), "--max-model-len 100000", "256")


def test_no_cuda(tiny_llama: TinyLlama) -> None:
    check(start(str(tiny_llama()), "--device", "cuda:7"), "--device cuda:7")


def test_an_unknown_backend(tiny_llama: TinyLlama) -> None:
    check(start(str(tiny_llama()), "--attention-backend", "magic"), "magic", "torch")


def test_a_port_in_use(tiny_llama: TinyLlama) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "octavo.cli.main", "serve", str(tiny_llama())),
                *("--port", str(port)),
            ],
            capture_output=True,
            text=True,
            timeout=MOST_S,
            check=False,
        )
    check((done.returncode, done.stderr), str(port), "in use", "--port")
