// Keys: find, make, change, rotate, revoke. A key itself is shown once, when it is made.

import { ask, get } from "./api.js";
import { NONE, element } from "./format.js";
import { Table, ago, boxes, button, day, dialog, field, moment, named, names, note, say, tag } from "./ui.js";

const PER_REQUEST = 500;
const MOST = 20000; // keys that are looked through here
const ROUTES = ["chat", "completions", "embeddings", "messages", "responses", "score", "rerank"];
const KINDS = { active: "good", expired: "warn", revoked: "bad" };
const DAY_S = 86400;

export class Keys {
  constructor(facts) {
    this.facts = facts; // names of limits and budgets, for keys to name
    this.keys = [];
    this.search = field("Find", { kind: "search", placeholder: "name, id, tenant, team, feature" });
    this.revoked = field("with revoked ones", { kind: "checkbox" });
    this.about = element("p", { class: "muted", role: "status" });
    this.table = new Table([
      { label: "Name", kind: "name", cell: (key) => named(key.name, "no name"), sort: (key) => key.name },
      { label: "Id", kind: "mono", cell: (key) => key.id, sort: (key) => key.id },
      { label: "Status", cell: (key) => tag(key.status, KINDS[key.status]), sort: (key) => key.status },
      { label: "Tenant", kind: "cut", cell: (key) => key.tenant || NONE, sort: (key) => key.tenant || null },
      { label: "Team", kind: "cut", cell: (key) => key.team || NONE, sort: (key) => key.team || null },
      { label: "Features", kind: "cut", cell: (key) => key.features.join(", ") || "any" },
      { label: "Models", kind: "cut", cell: (key) => key.models.join(", ") || "any" },
      { label: "Limits, budgets", kind: "cut", cell: (key) => [...key.limits, ...key.budgets].join(", ") || NONE },
      { label: "Ends", cell: (key) => day(key.expires), sort: (key) => key.expires },
      { label: "Last used", cell: (key) => ago(key.last_used), sort: (key) => key.last_used },
      { label: "Do", kind: "do", cell: (key) => this.actions(key) },
    ], { caption: "API keys", size: 50, empty: "No such key.", key: (key) => key.id });
    this.place = element("section", { class: "card", "aria-labelledby": "title" },
      element("div", { class: "head" }, element("h2", { id: "title", tabindex: "-1" }, "Keys"), button("New key", () => this.create(), { class: "primary", id: "new-key" })),
      this.about, element("div", { class: "filters" }, this.search.place, this.revoked.place), this.table.place);
    this.search.input.addEventListener("input", () => this.draw());
    this.revoked.input.addEventListener("change", () => this.draw());
  }

  async load() {
    if (!this.facts.has_ledger) {
      this.place.replaceChildren(element("h2", { id: "title", tabindex: "-1" }, "Keys"),
        note("This gateway keeps no ledger, and its keys are those of its configuration: give `ledger.url` there to make keys here."));
      return;
    }
    const found = [];
    let page;
    do {
      page = await get("/keys", { revoked: "true", limit: PER_REQUEST, after: found.at(-1)?.id });
      found.push(...page.data);
    } while (page.has_more && found.length < MOST);
    this.keys = found;
    this.isCut = page.has_more;
    this.draw();
  }

  draw() {
    const wanted = this.search.input.value.trim().toLowerCase();
    const fits = (key) => (this.revoked.input.checked || key.status !== "revoked")
      && (!wanted || [key.name, key.id, key.tenant, key.team, ...key.features].some((text) => text.toLowerCase().includes(wanted)));
    const shown = this.keys.filter(fits);
    const inline = this.facts.num_inline_keys;
    this.about.textContent = `${shown.length} of ${this.keys.length}${this.isCut ? " or more" : ""} keys.`
      + (inline ? ` ${inline} more stand in the configuration and are changed there.` : "");
    this.table.set(shown);
  }

  actions(key) {
    if (key.status === "revoked") return `on ${day(key.revoked)}`;
    const of = key.name || key.id;
    return element("span", { class: "actions" },
      button("Change", () => this.change(key), { "aria-label": `Change ${of}` }),
      button("Rotate", () => this.rotate(key), { "aria-label": `Rotate ${of}` }),
      button("Revoke", () => this.revoke(key), { "aria-label": `Revoke ${of}`, class: "danger" }));
  }

  put(key) {
    const index = this.keys.findIndex((known) => known.id === key.id);
    if (index < 0) this.keys.unshift(key);
    else this.keys[index] = key;
    this.draw();
    const row = [...this.table.body.rows].find((one) => one.dataset.key === key.id);
    (row?.querySelector("button") ?? document.getElementById("new-key")).focus();
  }

  create() {
    const form = this.form();
    dialog({
      title: "New key", content: form.content, action: "Create key",
      work: () => ask("POST", "/keys", { body: form.value() }),
      done: (made) => this.show(made, "The key is made."),
    });
  }

  change(key) {
    const form = this.form(key);
    dialog({
      title: `Change ${key.name || key.id}`, content: form.content, action: "Save",
      work: () => ask("PATCH", path(key), { body: form.value() }),
      done: (changed) => {
        this.put(changed);
        say("The key is changed.");
      },
    });
  }

  rotate(key) {
    const overlap = field("The old key passes for so many hours more", { kind: "number", value: 24, min: 0, max: 2160, step: "any", required: true, hint: "0: it ends now" });
    dialog({
      title: `Rotate ${key.name || key.id}`, action: "Make a new secret",
      content: [note("The key keeps its id, and with it its limits, budgets and records; its secret becomes another."), overlap.place],
      work: () => ask("POST", `${path(key)}/rotate`, { body: { overlap_s: 3600 * Number(overlap.input.value) } }),
      done: (made) => this.show(made, made.old_key_until ? `The old key passes until ${moment(made.old_key_until)} UTC.` : "The old key has ended."),
    });
  }

  revoke(key) {
    const reason = field("Why, for the audit log", { maxlength: 500 });
    dialog({
      title: `Revoke ${key.name || key.id}?`, action: "Revoke for good", danger: true,
      content: [element("p", {}, "Requests with this key are refused from now on. This cannot be undone."), reason.place],
      work: () => ask("DELETE", path(key), { body: { reason: reason.input.value } }),
      done: (revoked) => {
        this.put(revoked);
        say("The key is revoked.");
      },
    });
  }

  show({ key: secret, ...key }, text) { // the only time that it can be seen
    const shown = field("The key", { value: secret, readonly: true, class: "mono" });
    const told = element("p", { class: "muted", role: "status" });
    const copy = button("Copy", async () => {
      shown.input.select();
      try {
        await navigator.clipboard.writeText(shown.input.value);
        told.textContent = "Copied.";
      } catch {
        told.textContent = "The browser does not let this page copy: press Ctrl+C.";
      }
    });
    dialog({
      title: `The secret of ${key.name || key.id}`,
      content: [element("p", {}, `${text} It is shown now and never again: only its digest is kept.`), shown.place, element("div", { class: "row" }, copy, told)],
      onClose: () => {
        shown.input.value = "";
        this.put(key);
      },
    });
    shown.input.focus();
    shown.input.select();
  }

  form(key) {
    const has = key ?? { features: [], models: [], routes: [], tags: {}, limits: [], budgets: [] };
    const of = (label, name, options) => field(label, { value: has[name] ?? "", maxlength: 128, ...options });
    const many = (label, name, hint) => field(label, { value: has[name].join(", "), hint });
    const id = field("Id", { maxlength: 64, pattern: "[A-Za-z0-9.\\-]+", hint: "stands in logs and records; empty: a random one" });
    const fields = { name: of("Name", "name"), tenant: of("Tenant", "tenant"), team: of("Team", "team") };
    const lists = {
      features: many("Features", "features", "that it may name, as `chat, search/*`; the first is used where a caller names none; empty: any"),
      models: many("Models", "models", "that it may ask for; empty: any"),
    };
    const count = (label, name) => field(label, { kind: "number", value: has[name] ?? "", min: 1, max: 1e9, step: 1 });
    const counts = { max_tokens: count("Most tokens of an answer", "max_tokens"), default_max_tokens: count("Tokens where a request names none", "default_max_tokens") };
    const requires = field("Requests must name max_tokens", { kind: "checkbox", value: has.requires_max_tokens });
    const tags = field("Tags", { kind: "textarea", rows: 2, value: Object.entries(has.tags).map(([name, value]) => `${name}=${value}`).join("\n"), hint: "`name=value`, a line each; put on every record" });
    const picks = {
      routes: boxes("Routes (none: all)", ROUTES, has.routes),
      limits: boxes("Limits", [...new Set([...this.facts.limits, ...has.limits])], has.limits),
      budgets: boxes("Budgets", [...new Set([...this.facts.budgets, ...has.budgets])], has.budgets),
    };
    const choices = [["never", "never"], ["in", "after so many days"]];
    if (key) choices.unshift(["keep", key.expires ? `as now: ${moment(key.expires)} UTC` : "as now: never"]);
    const ends = field("Ends", { kind: "select", choices });
    const days = field("Days", { kind: "number", min: 0.001, max: 36500, step: "any", value: 90 });
    const show = () => { days.place.hidden = days.input.disabled = ends.input.value !== "in"; };
    ends.input.addEventListener("change", show);
    show();
    const places = (group) => Object.values(group).map((one) => one.place);
    const filled = Object.entries(picks).filter(([name]) => name === "routes" || this.facts[name].length || has[name].length);
    const content = [
      element("div", { class: "grid" }, ...places(fields), ...(key ? [] : [id.place]), ...places(lists), ends.place, days.place),
      element("details", {}, element("summary", {}, "Limits, budgets, routes, tokens, tags"), ...filled.map(([, pick]) => pick.place),
        element("div", { class: "grid" }, ...places(counts), requires.place, tags.place)),
    ];
    const value = () => {
      const body = {};
      if (!key && id.input.value) body.id = id.input.value;
      for (const [name, one] of Object.entries(fields)) body[name] = one.input.value.trim();
      for (const [name, one] of Object.entries(lists)) body[name] = names(one.input.value);
      for (const [name, one] of Object.entries(counts)) body[name] = one.input.value === "" ? null : Number(one.input.value);
      for (const [name, pick] of Object.entries(picks)) body[name] = pick.value();
      body.requires_max_tokens = requires.input.checked;
      body.tags = readTags(tags.input.value);
      if (ends.input.value === "in") body.expires_in_s = DAY_S * Number(days.input.value);
      else if (ends.input.value === "never") body.expires = null;
      return body;
    };
    return { content, value };
  }
}

const path = (key) => `/keys/${encodeURIComponent(key.id)}`;

function readTags(text) {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  return Object.fromEntries(lines.map((line) => {
    const at = line.indexOf("=");
    if (at < 1) throw new Error(`Tags: write ${line}=value`);
    return [line.slice(0, at).trim(), line.slice(at + 1).trim()];
  }));
}
