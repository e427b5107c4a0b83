from __future__ import annotations

import io
from time import process_time

from rich.cells import cell_len
from rich.console import Console

from octavo.planning.cost_query import CostQuery
from octavo.planning.cost_report import CostReport, CostRow
from octavo.planning.cost_table import print_report


def printed(*groups: tuple[str, ...], by: tuple[str, ...] = ("feature",)) -> list[str]:
    """The lines of a report's table, those above it left out."""
    total = CostRow()
    rows = [CostRow(group=group, num_requests=n, cost_nano=10**9) for n, group in enumerate(groups)]
    for row in rows:
        total.add(row)
    report = CostReport(
        by=by,
        view="usage",
        currency="USD",
        rows=tuple(rows),
        total=total,
        device_ns={},
        prices=(),
        outcomes=(),
    )
    target = io.StringIO()
    console = Console(file=target, width=40)
    print_report(report, CostQuery(since_ns=0), [], console)
    return target.getvalue().splitlines()[2:]


def test_nothing_is_cut_and_columns_stand_in_line() -> None:
    """Also where the terminal is narrow, and names have characters of two columns."""
    head, *rows, total = printed(("chat",), ("\u691c\u7d22",), ("",), ("a" * 70,))
    assert head.split()[:2] == ["feature", "requests"]
    assert [row.split()[0] for row in rows] == ["chat", "\u691c\u7d22", "(none)", "a" * 70]
    assert total.split()[:2] == ["total", "6"]
    at = {cell_len(line[: line.index(text)]) for line, text in ((rows[0], " 0 "), (rows[1], " 1 "))}
    assert len(at) == 1


def test_names_move_no_cursor() -> None:
    lines = printed(("\x1b[2Jx\r\ny\u202e",), by=("tag:\x07",))
    assert all(line.isprintable() for line in lines)
    assert "\ufffd[2Jx\ufffd\ufffdy\ufffd" in lines[1]


def test_long_reports_are_quick() -> None:
    begin = process_time()
    assert len(printed(*((f"f{n}",) for n in range(5000)))) == 5002
    assert process_time() - begin < 3
