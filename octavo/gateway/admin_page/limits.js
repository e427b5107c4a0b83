// Limits: how the counters stand that requests were counted to lately.

import { get } from "./api.js";
import { NONE, element, format } from "./format.js";
import { Table } from "./ui.js";

const subject = (row) => Object.entries(row.subject).map(([name, value]) => `${name} ${value || NONE}`).join(", ") || "all";

function left(row, name) {
  const rate = row[`${name}_per_minute`];
  return rate == null ? NONE : `${format.count(row[`${name}_left`])} of ${format.count(rate)} a minute`;
}

export class Limits {
  constructor(facts) {
    this.every = 5000;
    this.table = new Table([
      { label: "Limit", kind: "name", cell: (row) => row.limit, sort: (row) => row.limit },
      { label: "Of", kind: "cut", cell: subject, sort: subject },
      { label: "Requests left", kind: "num", cell: (row) => left(row, "requests"), sort: (row) => row.requests_left },
      { label: "Tokens left", kind: "num", cell: (row) => left(row, "tokens"), sort: (row) => row.tokens_left },
      { label: "Running", kind: "num", cell: (row) => (row.concurrency == null ? NONE : `${format.count(row.running)} of ${format.count(row.concurrency)}`), sort: (row) => row.running },
    ], { caption: "Counters of limits", size: 50, empty: facts.limits.length ? "No request has come to a limit yet." : "The configuration has no limits: give `limits.rules`." });
    this.place = element("section", { class: "card", "aria-labelledby": "title" }, element("h2", { id: "title", tabindex: "-1" }, "Limits"),
      element("p", { class: "muted" }, `${facts.limits.length} in the configuration${facts.limits.length ? `: ${facts.limits.join(", ")}` : ""}. Shown are those that requests were counted to lately.`), this.table.place);
  }

  async load() {
    this.table.set((await get("/limits")).data);
  }
}
