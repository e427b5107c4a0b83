"""A cost report on a terminal: a table of costs, and one for each name of outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.planning.cost_columns import outcome_columns, show_column, usage_columns
from octavo.planning.cost_query import describe
from octavo.planning.cost_words import NO_NAME, device_time_line, price_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

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
    console.print(_table(report, usage_columns(report)))
    for name in report.outcomes:
        console.print()
        say(name, style="bold")
        console.print(_table(report, outcome_columns(report, name)))
    if report.prices:
        console.print()
    for price in report.prices:
        say(price_line(price))
    for note in notes:
        say(f"note: {note}", style="yellow")


def _table(report: CostReport, columns: Sequence[Column]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_footer=bool(report.by), footer_style="bold")
    texts = [show_column(column, report) for column in columns]
    for index, name in enumerate(report.by):
        table.add_column(escape(name), footer="" if index else "total", overflow="fold")
    for column, text in zip(columns, texts, strict=True):
        table.add_column(escape(column.heading), footer=text[-1], justify="right", no_wrap=True)
    if not report.by:
        table.add_row(*(text[-1] for text in texts))
        return table
    for index, row in enumerate(report.rows):
        group = [escape(value) if value else f"[dim]{NO_NAME}[/dim]" for value in row.group]
        table.add_row(*group, *(text[index] for text in texts))
    return table
