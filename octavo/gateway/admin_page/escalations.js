// Escalations: what was not good enough, why, and what the better answer cost.

import { get } from "./api.js";
import { NONE, element, format } from "./format.js";
import { Table, button, field, moment, named, note, say } from "./ui.js";

const SPANS = [["24h", "the last day"], ["7d", "the last 7 days"], ["30d", "the last 30 days"], ["all", "all time"]];
const money = (value, row) => format.money(Number(value), row.currency);

// Against asking the dearer tier at once, of the answers whose price there is known.
function saved(row) {
  const text = money(row.saved, row);
  return row.passed_with_price < row.passed ? `${text} by ${format.count(row.passed_with_price)}` : text;
}

export class Escalations {
  constructor(facts) {
    this.facts = facts;
    this.since = field("Since", { kind: "select", choices: SPANS, value: "7d" });
    this.feature = field("Feature", { kind: "search" });
    this.judge = field("Judge", { kind: "search" });
    this.totals = new Table([
      { label: "Feature", kind: "name", cell: (row) => named(row.feature, "untagged"), sort: (row) => row.feature },
      { label: "Judge", kind: "cut", cell: (row) => row.judge, sort: (row) => row.judge },
      { label: "Judged", kind: "num", cell: (row) => format.count(row.judged), sort: (row) => row.judged },
      { label: "Passed", kind: "num", cell: (row) => format.count(row.passed), sort: (row) => row.passed },
      { label: "Escalated", kind: "num", cell: (row) => `${format.count(row.escalated)}, ${format.share(row.escalated_share)}`, sort: (row) => row.escalated_share },
      { label: "Cheaper tier", kind: "num", cell: (row) => money(row.cheap_cost, row), sort: (row) => Number(row.cheap_cost) },
      { label: "Dearer tier", kind: "num", cell: (row) => money(row.dear_cost, row), sort: (row) => Number(row.dear_cost) },
      { label: "Saved", kind: "num", cell: (row) => saved(row), sort: (row) => Number(row.saved) },
    ], { caption: "Judged answers by feature and judge", sorted: [2, true], empty: "No answer was judged in this time." });
    this.table = new Table([
      { label: "Time, UTC", kind: "time", cell: (row) => moment(row.time), sort: (row) => row.time },
      { label: "Feature", kind: "cut", cell: (row) => named(row.feature, "untagged"), sort: (row) => row.feature },
      { label: "Judge", kind: "cut", cell: (row) => row.judge, sort: (row) => row.judge },
      { label: "Score", kind: "num", cell: (row) => (row.score == null ? NONE : row.score.toFixed(3)), sort: (row) => row.score },
      { label: "Reason", kind: "wide", cell: (row) => row.reason },
      { label: "From", kind: "cut", cell: (row) => `${row.cheap_tier}: ${row.cheap_model}` },
      { label: "To", kind: "cut", cell: (row) => (row.dear_tier ? `${row.dear_tier}: ${row.dear_model}${row.dear_status === "ok" ? "" : ` (${row.dear_status})`}` : "nobody answered") },
      { label: "Cost", kind: "num", cell: (row) => `${money(row.cheap_cost, row)} → ${money(row.dear_cost, row)}`, sort: (row) => Number(row.difference) },
      { label: "Request", kind: "mono", cell: (row) => row.request_id },
    ], { caption: "Escalations, the newest first", empty: "No escalation in this time." });
    this.more = button("Older ones", () => this.reload(() => this.older()));
    this.place = element("section", { class: "stack", "aria-labelledby": "title" },
      element("div", { class: "card" }, element("h2", { id: "title", tabindex: "-1" }, "Escalations"),
        element("div", { class: "filters" }, this.since.place, this.feature.place, this.judge.place), this.totals.place,
        element("p", { class: "muted" }, "Saved: against sending all of these to the dearer tier at once, by the answers whose price there is known; below 0 the hybrid costs more than it spares.")),
      element("div", { class: "card" }, element("h2", {}, "One by one"), this.table.place, this.more));
    for (const one of [this.since, this.feature, this.judge]) one.input.addEventListener("change", () => this.reload());
  }

  query() {
    return { since: this.since.input.value, feature: this.feature.input.value.trim() || null, judge: this.judge.input.value.trim() || null };
  }

  async load() {
    if (!this.facts.has_ledger) {
      this.place.replaceChildren(element("div", { class: "card" }, element("h2", { id: "title", tabindex: "-1" }, "Escalations"), note("This gateway keeps no ledger: give `ledger.url`.")));
      return;
    }
    const turn = (this.turn = {}); // answers may overtake one another
    const page = await get("/escalations", this.query());
    if (turn !== this.turn) return;
    this.totals.set(page.totals);
    this.take(page, []);
    say(`${page.totals.reduce((sum, row) => sum + row.escalated, 0)} escalations.`);
  }

  async older() {
    const { turn } = this;
    const page = await get("/escalations", { ...this.query(), before: this.next });
    if (turn !== this.turn) return;
    this.take(page, this.table.rows);
    say(`${this.table.rows.length} are shown.`);
  }

  take(page, before) {
    this.next = page.next;
    this.table.set([...before, ...page.data]);
    if (!page.next && document.activeElement === this.more) document.getElementById("title").focus();
    this.more.hidden = !page.next;
  }
}
