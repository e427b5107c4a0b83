"""Pulls from the Hugging Face Hub, with the real huggingface_hub against a server of our own.

Each runs in a process of its own, because huggingface_hub reads its environment when imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save

if TYPE_CHECKING:
    from collections.abc import Callable

COMMIT = "c" * 40
FILES = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}).encode(),
    "model.safetensors": save({"w": torch.ones(3, 2)}),
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"hi",
    "README.md": b"---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n",
    "pytorch_model.bin": b"\x80 a pickle",
    "modeling_custom.py": b"raise SystemExit",
    "onnx/config.json": b"{}",
    "consolidated.safetensors": b"again",
}
SCRIPT = """
import sys
from octavo.errors import StartupError
from octavo.weights import fetch, store
try:
    path = fetch.pull(sys.argv[1])
except StartupError as error:
    print(f"{type(error).__name__}: {error}")
else:
    print(path)
    print(sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()))
    model = store.find(sys.argv[1])
    print(model.architecture, model.license, model.source)
    assert store.resolve(sys.argv[1]) == path
"""


@pytest.fixture
def pull(tmp_path: Path) -> Callable[..., list[str]]:
    """Pull a name from the hub at a URL; the lines that the process prints."""

    def run(name: str, url: str, **environment: str) -> list[str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        env = inherited | {
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        process = subprocess.run(
            [sys.executable, "-c", SCRIPT, name],
            capture_output=True,
            text=True,
            env=env | environment,
            check=False,
            timeout=120,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()

    return run


@pytest.fixture
def hub(server: Any) -> Any:
    """A hub with the model org/name."""
    api = "/api/models/org/name"
    info = {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
    server.files[f"{api}/revision/main"] = server.files[api] = json.dumps(info).encode()
    tree = [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in FILES.items()
    ]
    server.files[f"{api}/tree/{COMMIT}"] = json.dumps(tree).encode()
    for path in list(server.files):
        server.types[path] = "application/json"
    for name, data in FILES.items():
        path = f"/org/name/resolve/{COMMIT}/{name}"
        server.files[path] = data
        etag = hashlib.sha1(data).hexdigest()
        server.headers[path] = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
    return server


def test_fetches_what_a_model_needs_and_nothing_else(hub: Any, pull: Any) -> None:
    path, files, model = pull("org/name", hub.url)
    assert path.endswith(COMMIT)
    wanted = ["README.md", "chat_template.jinja", "config.json", "model.safetensors"]
    assert files == str([*wanted, "tokenizer.json"])
    assert model == "LlamaForCausalLM apache-2.0 hub"
    fetched = {path.rsplit("/", 1)[-1] for path, _ in hub.requests}
    assert not {"pytorch_model.bin", "modeling_custom.py", "consolidated.safetensors"} & fetched


def test_offline_from_the_cache(hub: Any, pull: Any, tmp_path: Path) -> None:
    first = pull("org/name", hub.url)
    manifest = next((tmp_path / "octavo-home").rglob("manifest.json"))
    manifest.unlink()
    # not in the store, but in the hub's cache, and the hub does not answer
    assert pull("org/name", "http://127.0.0.1:9") == first
    manifest.unlink()
    assert pull("org/name", hub.url, HF_HUB_OFFLINE="1") == first


def test_offline_without_a_copy(pull: Any) -> None:
    unreachable = "cannot be reached, and its cache has no complete copy"
    assert unreachable in pull("org/name", "http://127.0.0.1:9")[0]
    assert unreachable in pull("org/name", "http://127.0.0.1:9", HF_HUB_OFFLINE="1")[0]


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "RepoNotFound", "ModelNotFoundError: org/name: the Hugging Face Hub has no such"),
        (403, "GatedRepo", "DownloadError: org/name is gated: accept its terms"),
    ],
)
def test_refusals(status: int, code: str, message: str, hub: Any, pull: Any) -> None:
    for path in ("/api/models/org/name", "/api/models/org/name/revision/main"):
        hub.headers[path] = {"X-Error-Code": code, "X-Error-Message": "no"}
    hub.statuses = [status] * 20
    hub.refuses = "/api/"
    lines = pull("org/name", hub.url)
    assert len(lines) == 1
    assert lines[0].startswith(message)


def test_a_model_without_weights_that_octavo_reads(hub: Any, pull: Any) -> None:
    info = json.loads(hub.files["/api/models/org/name"])
    names = ["config.json", "pytorch_model.bin"]
    info["siblings"] = [{"rfilename": name} for name in names]
    hub.files["/api/models/org/name/revision/main"] = json.dumps(info).encode()
    tree_path = f"/api/models/org/name/tree/{COMMIT}"
    tree = [entry for entry in json.loads(hub.files[tree_path]) if entry["path"] in names]
    hub.files[tree_path] = json.dumps(tree).encode()
    (line,) = pull("org/name", hub.url)
    assert line.startswith("CheckpointError: ")
    assert "has no model.safetensors" in line
