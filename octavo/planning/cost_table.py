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
    numbers = [show_column(column, report) for column in columns]
    if report.by:
        groups = [[printable(value) or NO_NAME for value in row.group] for row in report.rows]
        groups.append(["total", *[""] * (len(report.by) - 1)])
    else:
        groups, numbers = [[]], [texts[-1:] for texts in numbers]
    names = [list(map(printable, texts)) for texts in zip(*groups, strict=True)]
    heads = [*map(printable, report.by), *(printable(column.heading) for column in columns)]
    rows = list(zip(*names, *numbers, strict=True))
    print_columns(heads, rows, len(names), console, has_total=bool(report.by))


def print_columns(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    num_left: int,
    console: Console,
    *,
    has_total: bool = False,
) -> None:
    """Columns of texts, as wide as they need to be: a terminal wraps lines, and files have them
    whole.

    Args:
        heads: of the columns.
        rows: a text for each column; printable.
        num_left: so many columns stand at the left of their places, the others at the right.
        console: to print on.
        has_total: the last row is a sum.
    """
    from rich.cells import cell_len
    from rich.text import Text

    widths = [max(map(cell_len, texts)) for texts in zip(heads, *rows, strict=True)]

    def line(texts: Sequence[str]) -> str:
        padded = []
        for index, (text, width) in enumerate(zip(texts, widths, strict=True)):
            blanks = " " * (width - cell_len(text))
            padded.append(text + blanks if index < num_left else blanks + text)
        return "  ".join(padded).rstrip()

    lines = [line(texts) for texts in rows]
    last = lines.pop() if has_total else None
    console.print(Text(line(heads), style="bold"), soft_wrap=True)
    if lines:
        console.out("\n".join(lines), highlight=False)
    if last is not None:
        console.print(Text(last, style="bold"), soft_wrap=True)


def printable(text: str) -> str:
    """Callers choose names: none of them moves the cursor."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)
