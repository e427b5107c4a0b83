from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.gpu.trace import analyze, main, short_name

if TYPE_CHECKING:
    from pathlib import Path


def event(category: str, name: str, start: float, length: float) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length}


MARKS = [event("user_annotation", f"ProfilerStep#{i}", 100.0 * i, 90.0) for i in range(5)]


def test_the_window_is_from_the_second_step_to_the_last() -> None:
    """100 to 400: three steps. Overlaps count once, what reaches beyond is cut."""
    device = [
        event("kernel", "early", 0, 50),
        event("kernel", "a", 90, 60),  # 100..150
        event("kernel", "b", 140, 20),  # 150..160 is new
        event("gpu_memcpy", "copy", 200, 100),  # after a gap of 40
        event("kernel", "a", 390, 50),  # after a gap of 90, 390..400
        event("kernel", "late", 410, 5),
        event("cpu_op", "not on the device", 100, 300),
        {"ph": "M", "name": "process_name"},
    ]
    found = analyze(MARKS + device)
    assert (found.num_steps, found.span_us) == (3, 300)
    assert found.busy_us == 50 + 10 + 100 + 10
    assert found.idle_share == pytest.approx(1 - 170 / 300)
    assert {name: (t.count, t.us) for name, t in found.kernels.items()} == {
        "a": (2, 60), "b": (1, 20), "copy": (1, 100),
    }  # fmt: skip
    assert {name: (t.count, t.us) for name, t in found.gaps.items()} == {
        "copy": (1, 40), "a": (1, 90),
    }  # fmt: skip


def test_idle_time_at_the_end_is_idle_time() -> None:
    found = analyze([*MARKS, event("kernel", "a", 100, 240)])
    assert found.gaps["(the end)"].us == 60
    assert found.busy_us + sum(gap.us for gap in found.gaps.values()) == found.span_us


def test_steps_may_be_marked_on_the_device_too() -> None:
    """`gpu_user_annotation` repeats the marks on the device's timeline; it is no work."""
    marks = [event("gpu_user_annotation", m["name"], m["ts"] + 7, 90.0) for m in MARKS]
    found = analyze([*MARKS, *marks, event("kernel", "a", 150, 10)])
    assert (found.num_steps, found.busy_us) == (3, 10)


def test_without_steps_or_kernels_there_is_no_analysis() -> None:
    with pytest.raises(ValueError, match="too few steps"):
        analyze(MARKS[:2])
    with pytest.raises(ValueError, match="needs a GPU"):
        analyze([*MARKS, event("kernel", "late", 500, 5)])


def test_names_are_cut_where_they_stop_telling() -> None:
    assert short_name("_paged_attention") == "_paged_attention"
    assert short_name("void at::native::foo(int, float)") == "at::native::foo"
    assert short_name("void cutlass::Kernel2<cutlass_80>(Params)").startswith(
        "cutlass::Kernel2<cutlass_80>"
    )


def test_a_dry_run_finds_no_device_and_still_writes_the_trace(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trace.json.gz"
    flags = ["--batch", "4", "--steps", "5", "--prompt-len", "8", "--out", str(out)]
    assert main([*small, *flags]) == 1
    assert "needs a GPU" in capsys.readouterr().out
    with gzip.open(out) as file:
        events = json.load(file)["traceEvents"]
    names = {e["name"] for e in events if e["name"].startswith("ProfilerStep#")}
    assert len(names) == 7
