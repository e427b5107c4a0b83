// The audit log: who changed what.

import { get } from "./api.js";
import { NONE, element } from "./format.js";
import { Table, button, moment, note } from "./ui.js";

const told = (detail) => Object.entries(detail).map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ") || NONE;

export class Audit {
  constructor(facts) {
    this.facts = facts;
    this.table = new Table([
      { label: "Time, UTC", kind: "time", cell: (row) => moment(new Date(row.time_ns / 1e6).toISOString()), sort: (row) => row.seq },
      { label: "Who", kind: "cut", cell: (row) => row.actor, sort: (row) => row.actor },
      { label: "Did", cell: (row) => row.action, sort: (row) => row.action },
      { label: "To", kind: "mono", cell: (row) => row.subject || "the gateway", sort: (row) => row.subject },
      { label: "Detail", kind: "wide", cell: (row) => told(row.detail) },
    ], { caption: "The audit log, the newest first", empty: "Nothing was changed yet." });
    this.more = button("Older ones", () => this.reload(() => this.take(this.table.rows.at(-1).seq)));
    this.place = element("section", { class: "card", "aria-labelledby": "title" }, element("h2", { id: "title", tabindex: "-1" }, "Audit log"), this.table.place, this.more);
  }

  async load() {
    if (this.facts.has_ledger) return this.take();
    this.place.replaceChildren(element("h2", { id: "title", tabindex: "-1" }, "Audit log"), note("This gateway keeps no ledger: give `ledger.url`."));
  }

  async take(before) {
    const page = await get("/audit", { before });
    this.table.set(before ? [...this.table.rows, ...page.data] : page.data);
    if (!page.has_more && document.activeElement === this.more) document.getElementById("title").focus();
    this.more.hidden = !page.has_more;
  }
}
