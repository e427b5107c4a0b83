"""Models of the Hugging Face Hub, through huggingface_hub and its cache. Knows no GGUF packages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import DownloadError, ModelNotFoundError
from octavo.weights import store

if TYPE_CHECKING:
    from octavo.weights.download import Progress

ALLOW = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt", "README.md")
"""What a model needs: configuration, weights, tokenizer, template, and the card that names
the license. Never a pickle, never code."""

IGNORE = ("*.bin", "*.pt", "*.pth", "*.py", "consolidated*", "original/*", "onnx/*", "openvino/*")
"""Other forms of the same weights, which would double the download, and what we never read."""


def pull(name: str, progress: Progress) -> Path:
    """Fetch the model `name` (`org/name`) into the hub's cache and enter it into the store.

    Without network, a complete copy in the cache serves.

    Raises:
        DownloadError: no network, no permission, or a failing server.
        ModelNotFoundError: the hub has no such model.
    """
    from huggingface_hub import errors, snapshot_download

    progress.say(f"fetching {name} from the Hugging Face Hub")
    try:
        folder = snapshot_download(name, allow_patterns=list(ALLOW), ignore_patterns=list(IGNORE))
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{name} is gated: accept its terms on its page of the hub, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"{name}: the Hugging Face Hub has no such model, or it is private "
            "(then `hf auth login`)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{name}: the Hugging Face Hub cannot be reached, and its cache has no complete copy"
        ) from error
    except Exception as error:
        # what the hub's HTTP library raises differs between its versions
        raise DownloadError(f"{name}: {_first_line(error)}") from error
    return Path(store.register(name, Path(folder), "hub", _license(Path(folder))).path)


def _license(folder: Path) -> str | None:
    """The license that the front matter of the model's card names."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    match = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S)
    line = re.search(r"^license:\s*(\S+)\s*$", match[1], re.M) if match else None
    return line[1].strip("'\"") if line else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
