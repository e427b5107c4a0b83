"""A cost report as one page: tables, plots as inline SVG, no script and no outside host.

Everything in it that callers chose (features, tags, models) is escaped, and a policy in the page
forbids it to load or run anything.
"""

from __future__ import annotations

from collections import defaultdict
from html import escape
from typing import TYPE_CHECKING

from octavo.planning.cost_columns import nano, outcome_columns, show_column, usage_columns
from octavo.planning.cost_query import TIMES, describe
from octavo.planning.cost_svg import NUM_COLORS, bars, stacked_columns
from octavo.planning.cost_words import NO_NAME, device_time_line, price_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.planning.cost_columns import Column
    from octavo.planning.cost_query import CostQuery
    from octavo.planning.cost_report import CostReport, CostRow

MAX_BARS = 20
MAX_ROWS = 1000
REST = "all others"

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2430; --dim: #5d6878; --line: #dde2e9;
  --c0: #2f6fb2; --c1: #d9822b; --c2: #3a9a5f; --c3: #b0413e; --c4: #7d5ba6; --c5: #8a6d3b;
  --c6: #cc6b9f; --c7: #808b98 }
@media (prefers-color-scheme: dark) { :root { --back: #14181e; --text: #e3e8ef; --dim: #98a3b3;
  --line: #2d343f; --c0: #5b9bdc; --c1: #e8a157; --c2: #63c088; --c3: #d9706c; --c4: #a98bd0;
  --c5: #b89a66; --c6: #e09cc2; --c7: #98a3b3 } }
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif;
  margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
.dim { color: var(--dim) } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap }
th { border-bottom: 1px solid var(--line) } td.name, th.name { text-align: left }
tfoot td { border-top: 1px solid var(--line); font-weight: 600 }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif } text { fill: var(--text) }
.end { text-anchor: end } .mid { text-anchor: middle } .grid { stroke: var(--line) }
"""


def to_html(report: CostReport, query: CostQuery, notes: Sequence[str]) -> str:
    """The page.

    Args:
        report: to show.
        query: what it was made for.
        notes: what a reader should know of it.
    """
    body = [
        "<h1>What requests cost</h1>",
        f'<p class="dim">{escape(describe(query))}</p>',
        f'<p class="dim">{escape(device_time_line(report))}</p>',
        *(f"<p>Note: {escape(note)}</p>" for note in notes),
        *_plots(report),
        f"<h2>By {escape(', '.join(report.by)) or 'nothing: all together'}</h2>",
        _table(report, usage_columns(report)),
    ]
    for name in report.outcomes:
        body += [f"<h2>{escape(name)}</h2>", _table(report, outcome_columns(report, name))]
    if report.prices:
        body.append("<h2>List prices</h2>")
        body += [f'<p class="dim">{escape(price_line(price))}</p>' for price in report.prices]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Octavo: cost report</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _plots(report: CostReport) -> list[str]:
    time = next((name for name in report.by if name in TIMES), None)
    plots = []
    if time is not None and len(report.rows) > 1:
        title = f"cost by {time}, {report.currency}"
        plots += [f"<h2>{escape(title)}</h2>", _over_time(report, time, title)]
    if time is None or len(report.by) > 1:
        costs: dict[str, int] = defaultdict(int)
        for row in report.rows:
            costs[_name(report, row, time) or "all"] += row.cost_nano
        shown = sorted(costs.items(), key=lambda item: -item[1])[:MAX_BARS]
        title = f"cost, {report.currency}, the dearest {len(shown)} of {len(costs)}"
        rows = [(name, float(cost), f"{nano(cost):.4f}") for name, cost in shown]
        plots += [f"<h2>{escape(title)}</h2>", bars(rows, title)]
    if report.prices:
        title = f"the same tokens at list prices, {report.currency}"
        here = nano(report.total.cost_nano)
        rows = [("here", float(here), f"{here:.4f}")]
        for name, cost in report.total.compared.items():
            rows.append((name, float(cost), f"{cost:.4f}"))
        plots += [f"<h2>{escape(title)}</h2>", bars(rows, title)]
    return plots


def _over_time(report: CostReport, time: str, title: str) -> str:
    """Columns over time, with the dearest names apart and the others together."""
    at = report.by.index(time)
    times = sorted({row.group[at] for row in report.rows})
    costs: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in report.rows:
        costs[_name(report, row, time) or "cost"][row.group[at]] += row.cost_nano
    names = sorted(costs, key=lambda name: -sum(costs[name].values()))
    if len(names) > NUM_COLORS:
        for name in names[NUM_COLORS - 1 :]:
            for moment, cost in costs[name].items():
                costs[REST][moment] += cost
        names = [*names[: NUM_COLORS - 1], REST]
    series = {name: [costs[name].get(moment, 0) / 1e9 for moment in times] for name in names}
    return stacked_columns(times, series, title)


def _name(report: CostReport, row: CostRow, left_out: str | None) -> str:
    named = zip(report.by, row.group, strict=True)
    return " · ".join(value or NO_NAME for name, value in named if name != left_out)


def _table(report: CostReport, columns: Sequence[Column]) -> str:
    texts = [show_column(column, report) for column in columns]
    heads = [f'<th class="name">{escape(name)}</th>' for name in report.by]
    heads += [f"<th>{escape(column.heading)}</th>" for column in columns]
    lines = []
    for index, row in enumerate(report.rows[:MAX_ROWS] if report.by else ()):
        cells = [f'<td class="name">{escape(value or NO_NAME)}</td>' for value in row.group]
        cells += [f"<td>{escape(text[index])}</td>" for text in texts]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    if report.by and len(report.rows) > MAX_ROWS:
        left = f"{len(report.rows) - MAX_ROWS} more rows: see --csv"
        lines.append(f'<tr><td class="name" colspan="{len(heads)}">{left}</td></tr>')
    total = [f'<td class="name">{"" if index else "total"}</td>' for index in range(len(report.by))]
    total += [f"<td>{escape(text[-1])}</td>" for text in texts]
    return (
        f'<div class="scroll"><table><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody><tfoot><tr>{''.join(total)}</tr></tfoot></table></div>"
    )
