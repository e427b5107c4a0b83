// Routes: backends and how they are, rules in their order, models and tiers.

import { get } from "./api.js";
import { NONE, element, format } from "./format.js";
import { Table, tag } from "./ui.js";

export function priceText(price) {
  if (!price) return "not known";
  const amount = (value) => format.money(Number(value), "").trim();
  if (price.device_hour) return `${amount(price.device_hour)} ${price.currency} a device hour`;
  const more = Number(price.per_request) ? `, ${amount(price.per_request)} a request` : "";
  return `${amount(price.input)} in, ${amount(price.output)} out${more} ${price.currency} a million tokens`;
}

export function stateOf(backend) {
  if (!backend.is_well) return ["bad", "not well"];
  return { closed: ["good", "well"], open: ["bad", "gets none: breaker open"], half_open: ["warn", "on trial: breaker half open"] }[backend.breaker];
}

const target = (one) => element("li", {}, tag(one.is_usable ? "usable" : "not usable", one.is_usable ? "good" : "bad"), " ",
  element("code", {}, `${one.backend}/${one.model}`), one.is_fallback ? " as fallback" : "", one.weight !== 1 ? ` ×${one.weight}` : "",
  element("span", { class: "muted" }, ` ${priceText(one.price)}`));

function goes(way) {
  const canaries = (way.canaries ?? []).map((canary) => `${canary.percent}% to ${canary.tiers.join(" → ")} (${canary.name})`);
  return [way.tiers.join(" → "), ...canaries, way.num_shadows ? `${way.num_shadows} shadows` : ""].filter(Boolean).join("; ");
}

function asks(when) {
  const parts = Object.entries(when).map(([name, value]) => {
    if (Array.isArray(value)) return `${name.replaceAll("_", " ")} ${value.join(" or ")}`;
    if (typeof value === "object") return Object.entries(value).map(([key, pattern]) => `${name} ${key}=${pattern}`).join(" and ");
    return `${name.replaceAll("_", " ")} ${value}`;
  });
  return parts.join(" and ") || "any known model";
}

function bounds(way) {
  return [way.deadline_s == null ? "" : `${way.deadline_s} s`, way.max_cost == null ? "" : `cost ${way.max_cost}`].filter(Boolean).join(", ") || NONE;
}

export class Routes {
  constructor() {
    this.every = 5000;
    this.backends = new Table([
      { label: "Backend", kind: "name", cell: (row) => row.name, sort: (row) => row.name },
      { label: "State", cell: (row) => { const [kind, text] = stateOf(row); return tag(text, kind); }, sort: (row) => stateOf(row)[1] },
      { label: "Kind", cell: (row) => row.kind, sort: (row) => row.kind },
      { label: "Models", kind: "cut", cell: (row) => row.models.join(", ") },
      { label: "Ours", kind: "num", cell: (row) => format.count(row.num_requests), sort: (row) => row.num_requests },
      { label: "Running", kind: "num", cell: (row) => format.count(row.num_running), sort: (row) => row.num_running },
      { label: "Waiting", kind: "num", cell: (row) => format.count(row.num_waiting), sort: (row) => row.num_waiting },
      { label: "KV cache", kind: "num", cell: (row) => format.share(row.kv_usage), sort: (row) => row.kv_usage },
      { label: "Breaker opened", kind: "num", cell: (row) => format.count(row.num_opened), sort: (row) => row.num_opened },
      { label: "Problem", kind: "wide", cell: (row) => row.problem || NONE },
    ], { caption: "Backends and their health", empty: "No backends." });
    this.rules = new Table([
      { label: "Rule", kind: "name", cell: (row) => row.name },
      { label: "For", kind: "wide", cell: (row) => asks(row.when ?? {}) },
      { label: "Goes to", kind: "wide", cell: goes },
      { label: "Bounds", cell: bounds },
    ], { caption: "Rules, in the order in which they are tried", empty: "No rules: models' names decide." });
    this.models = new Table([
      { label: "Model", kind: "name", cell: (row) => row.name, sort: (row) => row.name },
      { label: "Goes to", kind: "wide", cell: goes },
      { label: "Bounds", cell: bounds },
    ], { caption: "Models that callers may ask for", size: 50, empty: "No models." });
    this.tiers = new Table([
      { label: "Tier", kind: "name", cell: (row) => row.name, sort: (row) => row.name },
      { label: "Targets", kind: "wide", cell: (row) => element("ul", { class: "plain" }, ...row.targets.map(target)) },
      { label: "Judge", cell: (row) => row.judge || NONE, sort: (row) => row.judge || null },
      { label: "Balance", cell: (row) => row.balance ?? NONE },
    ], { caption: "Tiers", empty: "No tiers: each model of a backend is one." });
    this.place = element("section", { "aria-labelledby": "title", class: "stack" }, element("div", { class: "card" }, element("h2", { id: "title", tabindex: "-1" }, "Backends"), this.backends.place),
      ...[["Rules", this.rules], ["Models", this.models], ["Tiers", this.tiers]].map(([name, table]) => element("div", { class: "card" }, element("h2", {}, name), table.place)));
  }

  async load() {
    const { backends, rules, models, tiers } = await get("/routes");
    const rows = (byName) => Object.entries(byName).map(([name, row]) => ({ name, ...row }));
    this.backends.set(rows(backends));
    this.rules.set(rules);
    this.models.set(rows(models));
    this.tiers.set(rows(tiers));
  }
}
