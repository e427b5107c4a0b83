"""What the start-up benchmark says of its parts; its runs are in `test_serve.py`."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.gpu import startup


def test_the_heaviest_imports() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import json, email.message"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
    (total, num), *rows = startup.heaviest_imports(done.stderr, 10_000)
    assert num == f"{len(rows)} modules"
    assert {"json", "json.decoder", "email.message"} <= {name for _, name in rows}
    assert abs(total - sum(seconds for seconds, _ in rows)) < 1e-6
    assert rows == sorted(rows, reverse=True)
    assert startup.heaviest_imports(done.stderr, 1)[1:] == rows[:1]


def test_parts_as_text() -> None:
    notes = startup.notes_of(
        {
            "parts": {"interpreter": 0.1, "LLM()": 5.0},
            "inside LLM()": {"weights": 0.5, "compile": 1.0},
            "compilation": {"num_kernels": 11, "waited_s": 1.0},
            "memory": {"total": 80 * 1024**3, "weights": 15 * 1024**3},
        }
    )
    assert notes == [
        "interpreter 0.10, LLM() 5.00",
        "inside LLM(): imports and others 3.50, weights 0.50, compile 1.00",
        "kernels: num_kernels 11.00, waited_s 1.00",
        "memory: total 80.0 GiB, weights 15.0 GiB",
    ]
