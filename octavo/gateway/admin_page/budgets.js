// Budgets: how much of each is used and reserved, and its burn-down out of the ledger.

import { get } from "./api.js";
import { burnDown } from "./burn.js";
import { NONE, element, format } from "./format.js";
import { button, errorText, moment, note, tag } from "./ui.js";

const PER_PAGE = 20;
const NUM_OPEN = 4; // burn-downs that are drawn without being asked for: each is a query of the ledger
const FRESH_MS = 60000; // how long one is good enough
const UNITS = [["cost", (row) => (v) => format.money(v, row.currency)], ["tokens", () => (v) => `${format.count(v)} tokens`], ["gpu_hours", () => (v) => `${format.rate(v)} GPU-hours`]];

export class Budgets {
  constructor(facts) {
    this.facts = facts;
    this.every = 15000;
    this.rows = [];
    this.page = 0;
    this.opened = null; // names of budgets whose burn-down is shown
    this.charts = new Map();
    this.about = element("p", { class: "muted", role: "status" });
    this.cards = element("div", { class: "budgets" });
    this.before = button("Previous page", () => this.turn(-1));
    this.after = button("Next page", () => this.turn(1));
    this.where = element("span", { class: "muted", role: "status" });
    this.pager = element("div", { class: "pager", hidden: true }, this.before, this.where, this.after);
    this.place = element("section", { class: "card", "aria-labelledby": "title" },
      element("h2", { id: "title", tabindex: "-1" }, "Budgets"), this.about, this.cards, this.pager);
  }

  async load() {
    this.rows = (await get("/budgets")).data;
    this.draw();
  }

  turn(by) {
    this.page += by;
    this.draw();
    document.getElementById("title").focus();
  }

  draw() {
    const num = Math.max(1, Math.ceil(this.rows.length / PER_PAGE));
    this.page = Math.min(this.page, num - 1);
    const begin = this.page * PER_PAGE;
    const shown = this.rows.slice(begin, begin + PER_PAGE);
    const near = this.rows.filter((row) => row.used_part + row.reserved_part >= 0.8).length;
    this.about.textContent = this.rows.length
      ? `${this.rows.length} counters of ${new Set(this.rows.map((row) => row.budget)).size} budgets, the most used first; ${near || "none"} at 80% or more. Periods are in UTC.`
      : "";
    this.opened ??= this.rows.length ? new Set(this.rows.slice(0, NUM_OPEN).map(idOf)) : null;
    const focused = document.activeElement?.closest("[data-key]")?.dataset.key;
    this.cards.replaceChildren(...shown.map((row) => this.card(row)));
    if (focused) [...this.cards.children].find((card) => card.dataset.key === focused)?.querySelector("summary")?.focus();
    if (!this.rows.length) {
      this.cards.append(note(this.facts.budgets.length ? "No request has been counted to a budget in its period." : "The configuration has no budgets: give `budgets.rules`."));
    }
    this.pager.hidden = num === 1;
    this.before.disabled = this.page === 0;
    this.after.disabled = this.page === num - 1;
    this.where.textContent = `${begin + 1} to ${begin + shown.length} of ${this.rows.length}`;
  }

  card(row) {
    const id = idOf(row);
    const units = UNITS.filter(([unit]) => row[`${unit}_ceiling`] != null);
    const meters = units.map(([unit, words]) => meter(row, unit, words(row)));
    const place = element("div");
    const more = element("details", { open: this.opened.has(id) }, element("summary", {}, "Burn-down"), place);
    more.addEventListener("toggle", () => {
      this.opened[more.open ? "add" : "delete"](id);
      if (more.open) this.chart(row, units, place);
    });
    const ends = row.period_end ? `until ${moment(row.period_end).slice(0, 16)}` : "of all time";
    return element("article", { class: "budget", "data-key": id },
      element("h3", {}, row.budget, " ", tag(row.kind, row.kind === "hard" ? "" : "warn")),
      element("p", { class: "muted" }, `${subject(row)} · ${row.period === "total" ? "" : `this ${row.period}, `}${ends}`),
      ...meters, more);
  }

  async chart(row, units, place) {
    if (!this.facts.has_ledger) return place.replaceChildren(note("This gateway keeps no ledger, and a counter has no past."));
    if (!row.period_end) return place.replaceChildren(note("A budget of all time has no end to burn down to."));
    const known = this.charts.get(idOf(row));
    if (known) place.replaceChildren(...known.made);
    if (known && Date.now() - known.at < FRESH_MS) return;
    try {
      const past = await get("/budgets/history", { budget: row.budget, ...row.subject });
      const made = units.map(([unit, words]) => graph(row, past, unit, words(row), place.clientWidth));
      this.charts.set(idOf(row), { made, at: Date.now() });
      place.replaceChildren(...made);
    } catch (error) {
      place.replaceChildren(note(`There is no burn-down: ${errorText(error)}.`));
    }
  }
}

const idOf = (row) => JSON.stringify([row.budget, row.subject]);

function subject(row) {
  return Object.entries(row.subject).map(([name, value]) => `${name} ${value || NONE}`).join(", ") || "for all";
}

function meter(row, unit, write) {
  const [used, reserved, ceiling] = [unit, `${unit}_reserved`, `${unit}_ceiling`].map((name) => Number(row[name]));
  const part = (used + reserved) / ceiling;
  const bars = [["", used], ["held", reserved]].map(([name, value]) => {
    const bar = element("i", { class: name });
    bar.style.width = `${Math.min(100, (100 * value) / ceiling)}%`;
    return bar;
  });
  const text = `${write(used)} of ${write(ceiling)} used, ${format.share(used / ceiling)}${reserved ? `; ${write(reserved)} reserved` : ""}`;
  return element("div", { class: `use ${part >= 1 ? "bad" : part >= 0.8 ? "warn" : ""}` }, element("span", { class: "meter" }, ...bars), element("span", {}, text));
}

function graph(row, past, unit, write, width) {
  const [begin, end] = [row.period_start, row.period_end].map(Date.parse);
  const ceiling = Number(row[`${unit}_ceiling`]);
  const now = Math.min(Date.now(), end);
  let left = ceiling;
  const points = [[begin, left]];
  const step = past.step === "hour" ? 3600e3 : 86400e3;
  for (const { time, [unit]: amount } of past.data) {
    left -= Number(amount);
    const from = Date.parse(past.step === "hour" ? `${time}:00:00Z` : `${time}T00:00:00Z`);
    points.push([Math.min(now, from + step), left]);
  }
  const counted = ceiling - Number(row[unit]);
  const differs = Math.abs(counted - left) > 0.01 * ceiling;
  if (points.at(-1)[0] < now) points.push([now, left]);
  const chart = burnDown({ points, begin, end, now, ceiling, write, width, label: `${row.budget}, ${subject(row)}` });
  if (differs) chart.append(note(`The ledger has ${write(ceiling - left)}, and the counter ${write(ceiling - counted)}: records that are on their way, a counter that began later, or requests from before a key changed.`));
  return chart;
}
