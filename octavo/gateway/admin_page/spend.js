// Spend by feature and tenant, or by anything else that the ledger knows, and by the day.

import { get } from "./api.js";
import { digits, element, format, svg } from "./format.js";
import { Table, field, moment, named, note, say } from "./ui.js";

const SPANS = [["24h", "the last day"], ["7d", "the last 7 days"], ["30d", "the last 30 days"], ["90d", "the last 90 days"]];
const BY = [["feature", "feature"], ["tenant", "tenant"], ["feature,tenant", "feature and tenant"], ["key", "key"], ["model", "model"], ["backend", "backend"]];
const NUM_COLOURS = 6;
const SIDES = { height: 190, left: 56, right: 4, top: 8, bottom: 20 };

export class Spend {
  constructor(facts) {
    this.facts = facts;
    this.by = field("By", { kind: "select", choices: BY });
    this.since = field("Since", { kind: "select", choices: SPANS, value: "7d" });
    this.about = element("p", { class: "muted", role: "status" });
    this.chart = element("div");
    this.tables = element("div");
    this.place = element("section", { class: "card", "aria-labelledby": "title" }, element("h2", { id: "title", tabindex: "-1" }, "Spend"),
      element("div", { class: "filters" }, this.by.place, this.since.place), this.about, this.chart, this.tables);
    for (const one of [this.by, this.since]) one.input.addEventListener("change", () => this.reload());
  }

  async load() {
    if (!this.facts.has_ledger) {
      this.place.replaceChildren(element("h2", { id: "title", tabindex: "-1" }, "Spend"), note("This gateway keeps no ledger: give `ledger.url`."));
      return;
    }
    const [by, since] = [this.by.input.value, this.since.input.value];
    const step = since === "24h" ? "hour" : "day";
    const turn = (this.turn = {}); // answers may overtake one another
    const [sums, days] = await Promise.all([get("/spend", { by, since }), get("/spend", { by: `${by},${step}`, since })]);
    if (turn !== this.turn) return;
    const parts = by.split(",");
    const total = sums.data.reduce((sum, row) => sum + Number(row.cost), 0);
    const currency = sums.data[0]?.currency ?? "USD";
    this.about.textContent = `${format.money(total, currency)} since ${moment(sums.since).slice(0, 16)} UTC, ${format.count(sums.data.reduce((sum, row) => sum + row.num_requests, 0))} requests and attempts.`;
    const table = new Table([
      ...parts.map((name, index) => ({ label: name[0].toUpperCase() + name.slice(1), kind: "name", cell: (row) => named(row.key[index], name === "feature" ? "untagged" : "none"), sort: (row) => row.key[index] })),
      { label: "Cost", kind: "num", cell: (row) => format.money(Number(row.cost), row.currency), sort: (row) => Number(row.cost) },
      { label: "Share", kind: "num", cell: (row) => format.share(total ? Number(row.cost) / total : null), sort: (row) => Number(row.cost) },
      { label: "Requests", kind: "num", cell: (row) => format.count(row.num_requests), sort: (row) => row.num_requests },
      { label: "Tokens in", kind: "num", cell: (row) => format.count(row.num_input_tokens), sort: (row) => row.num_input_tokens },
      { label: "Cached", kind: "num", cell: (row) => format.count(row.num_cached_tokens), sort: (row) => row.num_cached_tokens },
      { label: "Tokens out", kind: "num", cell: (row) => format.count(row.num_output_tokens), sort: (row) => row.num_output_tokens },
      { label: "Device time", kind: "num", cell: (row) => format.seconds(row.device_seconds), sort: (row) => row.device_seconds },
    ], { caption: `Spend by ${parts.join(" and ")}`, size: 50, sorted: [parts.length, true], empty: "No request in this time." });
    table.set(sums.data);
    this.tables.replaceChildren(table.place);
    this.chart.replaceChildren(...(total ? [bars(sums.data, days.data, step, currency, this.chart.clientWidth)] : []));
    say(this.about.textContent);
  }
}

// Bars by the day or hour, the dearest groups in colours of their own.
function bars(sums, rows, step, currency, across) {
  const BOX = { ...SIDES, width: Math.max(280, across) };
  const name = (key) => key.map((part) => part || "none").join(" · ");
  const shown = sums.slice(0, NUM_COLOURS).map((row) => name(row.key));
  const times = [...new Set(rows.map((row) => row.key.at(-1)))].sort();
  const stacks = times.map((time) => {
    const parts = new Array(NUM_COLOURS + 1).fill(0);
    for (const row of rows) {
      if (row.key.at(-1) !== time) continue;
      const index = shown.indexOf(name(row.key.slice(0, -1)));
      parts[index < 0 ? NUM_COLOURS : index] += Number(row.cost);
    }
    return parts;
  });
  const sum = (parts) => parts.reduce((all, part) => all + part, 0);
  const top = Math.max(...stacks.map(sum)) || 1;
  const y = (value) => BOX.height - BOX.bottom - (value / top) * (BOX.height - BOX.top - BOX.bottom);
  const width = (BOX.width - BOX.left - BOX.right) / times.length;
  const highest = stacks.findIndex((parts) => sum(parts) === top);
  const told = `Cost by the ${step}: ${times.length} ${step}s, the most on ${times[highest]}: ${format.money(top, currency)}.`;
  const made = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": told });
  for (const part of [0, 0.5, 1]) {
    made.append(svg("line", { x1: BOX.left, x2: BOX.width - BOX.right, y1: y(part * top), y2: y(part * top), class: part ? "grid" : "axis" }),
      svg("text", { x: BOX.left - 6, y: y(part * top) + 3.5, "text-anchor": "end" }, part ? digits(part * top) : "0"));
  }
  const every = Math.ceil((times.length * 48) / BOX.width);
  stacks.forEach((parts, index) => {
    let base = 0;
    const x = BOX.left + index * width;
    parts.forEach((part, colour) => {
      if (!part) return;
      const bar = svg("rect", { x: (x + width * 0.1).toFixed(1), width: (width * 0.8).toFixed(1), y: y(base + part).toFixed(1), height: (y(base) - y(base + part)).toFixed(1), class: `f${colour}` });
      bar.append(svg("title", {}, `${times[index]} ${shown[colour] ?? "others"}: ${format.money(part, currency)}`));
      made.append(bar);
      base += part;
    });
    if (index % every === 0) made.append(svg("text", { x: x + width / 2, y: BOX.height - 4, "text-anchor": "middle" }, times[index].slice(step === "hour" ? 11 : 5)));
  });
  const legend = [...shown, ...(sums.length > NUM_COLOURS ? ["others"] : [])].map((text, index) => element("li", {}, element("i", { class: `swatch f${index}` }), text));
  return element("figure", { class: "bars" }, made, element("figcaption", {}, element("ul", { class: "legend" }, ...legend)));
}
