from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which finds its tasks beside itself."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "cpu"))
    import lm_eval_parity

    monkeypatch.delitem(sys.modules, "lm_eval_tasks")
    monkeypatch.delitem(sys.modules, "lm_eval_parity")
    return lm_eval_parity


def test_the_right_answer_is_told_wherever_it_stands(parity: Any, tmp_path: Path) -> None:
    parity.write_tasks(tmp_path)
    lines = (tmp_path / "own_choices.jsonl").read_text().splitlines()
    questions = {(q := json.loads(line))["question"]: q for line in lines}
    assert len(questions) == 40
    for name, right in (
        ("The capital of Italy is", "Rome"),
        ("Two plus two is", "four"),
        ("An hour has", "sixty minutes"),
    ):
        assert questions[name]["choices"][questions[name]["answer"]] == right
    assert len({question["answer"] for question in questions.values()}) == 4
    for question in questions.values():
        assert len(set(question["choices"])) == 4


def run(*answers: Any) -> dict[str, Any]:
    samples = [{"doc": i, "resps": [[answer]]} for i, answer in enumerate(answers)]
    return {"samples": {"t": samples}}


def test_what_differs_is_found(parity: Any) -> None:
    hf = run(["-1.5", "True"], ["-2.0", "False"], "-3.0")
    assert parity.compare("t", hf, hf) == parity.Samples("t", num=3)
    found = parity.compare("t", hf, run(["-1.5", "False"], ["-2.5", "False"], "-3.25"))
    assert found == parity.Samples("t", 3, 1, 0.5, 0.25)
