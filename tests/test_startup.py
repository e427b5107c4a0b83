"""What a process does, and leaves out, until its first token."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TinyLlama

START = """
import gc, json, sys
from octavo import LLM, SamplingParams
from octavo.errors import StartupError
def collector():
    return [gc.isenabled(), gc.get_freeze_count() > 0]
seen = {"before": collector()}
try:
    LLM(sys.argv[1] + "/none")
except StartupError:
    seen["failed"] = collector()
llm = LLM(sys.argv[1], device="cpu", kv_cache_memory=2**21, num_threads=1)
seen["first"], frozen = collector(), gc.get_freeze_count()
llm.generate({"prompt_token_ids": [1, 2, 3]}, SamplingParams(max_tokens=1))
seen["modules"] = sorted({"jinja2", "llguidance", "httpx", "rich", "uvloop"} & set(sys.modules))
llm.close()
LLM(sys.argv[1], device="cpu", kv_cache_memory=2**21, num_threads=1).close()
seen["second"], seen["grew"] = collector(), gc.get_freeze_count() > frozen
print(json.dumps(seen))
"""


def started(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", START, str(folder)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_start_without_collections_and_without_what_a_plain_prompt_does_not_need(
    tiny_llama: TinyLlama,
) -> None:
    assert started(tiny_llama()) == {
        "before": [True, False],
        "failed": [True, False],  # the collector is back, and nothing is kept from it
        "first": [True, True],
        "second": [True, True],
        "grew": False,
        "modules": [],
    }
