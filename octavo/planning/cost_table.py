"""A cost report on a terminal: a table of costs, and one for each name of outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.planning.cost_columns import outcome_columns, show_column, usage_columns
from octavo.planning.cost_query import describe
from octavo.planning.cost_words import NO_NAME, device_time_line, price_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from octavo.planning.cost_columns import Column
    from octavo.planning.cost_query import CostQuery
    from octavo.planning.cost_report import CostReport


def print_report(
    report: CostReport, query: CostQuery, notes: Sequence[str], console: Console
) -> None:
    """Print it for a reader."""
    from rich.markup import escape

    def say(text: str, style: str = "dim") -> None:
        console.print(escape(text), highlight=False, style=style, soft_wrap=True)

    say(describe(query))
    if line := device_time_line(report):
        say(line)
    console.print()
    _print_table(report, usage_columns(report), console)
    for name in report.outcomes:
        console.print()
        say(name, style="bold")
        _print_table(report, outcome_columns(report, name), console)
    if report.prices:
        console.print()
    for price in report.prices:
        say(price_line(price))
    for note in notes:
        say(f"note: {note}", style="yellow")


def _print_table(report: CostReport, columns: Sequence[Column], console: Console) -> None:
    """Names to the left, numbers to the right. Rich's own tables take 2 ms for each row of such
    a report, and a month by hours has thousands.
    """
    from rich.cells import cell_len
    from rich.text import Text

    numbers = [show_column(column, report) for column in columns]
    if report.by:
        groups = [[_printable(value) or NO_NAME for value in row.group] for row in report.rows]
        groups.append(["total", *[""] * (len(report.by) - 1)])
    else:
        groups, numbers = [[]], [texts[-1:] for texts in numbers]
    names = [list(map(_printable, texts)) for texts in zip(*groups, strict=True)]
    heads = [*map(_printable, report.by), *(_printable(column.heading) for column in columns)]
    widths = [
        max(map(cell_len, (head, *texts)))
        for head, texts in zip(heads, [*names, *numbers], strict=True)
    ]

    def line(texts: Sequence[str]) -> str:
        padded = []
        for index, (text, width) in enumerate(zip(texts, widths, strict=True)):
            blanks = " " * (width - cell_len(text))
            padded.append(text + blanks if index < len(names) else blanks + text)
        return "  ".join(padded).rstrip()

    lines = [line(texts) for texts in zip(*names, *numbers, strict=True)]
    last = lines.pop() if report.by else None
    console.print(Text(line(heads), style="bold"), soft_wrap=True)
    if lines:
        console.out("\n".join(lines), highlight=False)
    if last is not None:
        console.print(Text(last, style="bold"), soft_wrap=True)


def _printable(text: str) -> str:
    """Callers choose names: none of them moves the cursor."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)
