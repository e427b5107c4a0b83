// The playground: where a chat would go, without sending it; or what becomes of it, sent as a caller would.

import { ask, failure, get, send } from "./api.js";
import { NONE, element, format } from "./format.js";
import { priceText } from "./routes.js";
import { Table, button, errorText, field, list, note, say, tag } from "./ui.js";

const TRIES_MS = [0, 150, 400, 1000, 2000, 4000]; // the ledger has a request some moments after its end
const ENDS = { ok: "good", escalated: "warn", client_left: "warn", over_budget: "warn" };

export class Playground {
  constructor() {
    this.key = field("Gateway key", { kind: "password", spellcheck: "false", hint: "one that callers use; stays in this page’s memory" });
    this.models = element("datalist", { id: "models" });
    this.model = field("Model", { list: "models", required: true });
    this.feature = field("Feature", { maxlength: 128 });
    this.session = field("Session", { maxlength: 128 });
    this.most = field("Most tokens", { kind: "number", min: 1, step: 1, value: 256 });
    this.system = field("System", { kind: "textarea", rows: 2 });
    this.message = field("Message", { kind: "textarea", rows: 4, required: true });
    this.stream = field("Stream the answer", { kind: "checkbox", value: true });
    this.go = element("button", { type: "submit", class: "primary" }, "Send");
    this.try = button("Explain, do not send", () => this.form.reportValidity() && this.run(() => this.explain()));
    this.stop = button("Stop", () => this.control.abort(), { disabled: true });
    this.refusal = element("p", { class: "error", role: "alert" });
    this.form = element("form", { class: "card" }, element("h2", { id: "title", tabindex: "-1" }, "Playground"), this.models,
      element("div", { class: "grid" }, ...[this.key, this.model, this.feature, this.session, this.most].map((one) => one.place)),
      this.system.place, this.message.place, this.stream.place, element("div", { class: "row" }, this.go, this.try, this.stop), this.refusal);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run(() => this.chat());
    });
    this.plan = element("section", { class: "card", "aria-label": "Where it goes", hidden: true });
    this.result = element("section", { class: "card", "aria-label": "What became of it", hidden: true });
    this.place = element("section", { class: "stack", "aria-labelledby": "title" }, this.form, this.plan, this.result);
  }

  async load() {
    const { models } = await get("/routes");
    this.models.replaceChildren(...Object.keys(models).map((name) => element("option", { value: name })));
    if (!this.model.input.value) this.model.input.value = Object.keys(models)[0] ?? "";
  }

  body() {
    const messages = [{ role: "user", content: this.message.input.value }];
    if (this.system.input.value) messages.unshift({ role: "system", content: this.system.input.value });
    const body = { model: this.model.input.value, messages, stream: this.stream.input.checked };
    if (body.stream) body.stream_options = { include_usage: true };
    if (this.most.input.value) body.max_tokens = Number(this.most.input.value);
    return body;
  }

  headers() {
    const headers = {};
    if (this.feature.input.value) headers["X-Octavo-Feature"] = this.feature.input.value;
    if (this.session.input.value) headers["X-Octavo-Session"] = this.session.input.value;
    return headers;
  }

  async run(work) {
    this.refusal.textContent = "";
    this.go.disabled = this.try.disabled = true;
    this.stop.disabled = false;
    this.control = new AbortController();
    try {
      await work();
    } catch (error) {
      if (error.name === "AbortError") say("Stopped.");
      else this.refusal.textContent = errorText(error);
    }
    this.go.disabled = this.try.disabled = false;
    this.stop.disabled = true;
  }

  async explain() {
    const key = this.key.input.value.trim();
    const found = await ask("POST", "/explain", { body: { body: this.body(), headers: this.headers(), ...(key ? { key } : {}) } });
    const { call, worst_case: worst } = found;
    const tiers = found.tiers.map((tier) => element("li", {}, element("b", {}, tier.name), tier.judge ? ` judged by ${tier.judge}` : "",
      element("ol", {}, ...tier.targets.map((one) => element("li", {}, tag(one.is_usable ? "usable" : "not usable", one.is_usable ? "good" : "bad"), " ",
        element("code", {}, `${one.backend}/${one.model}`), element("span", { class: "muted" }, ` load ${format.count(one.load)}, ${priceText(one.price)}`))))));
    this.result.hidden = true;
    this.plan.hidden = false;
    this.plan.replaceChildren(element("h2", {}, "Where it goes"), list([
      ["Rule", found.rule],
      ["Tiers, in this order", element("ol", { class: "tiers" }, ...tiers)],
      ["At the most", worst ? `${format.money(Number(worst.cost), found.tiers[0]?.targets[0]?.price?.currency ?? "")}, ${format.count(worst.num_tokens)} tokens, all tiers and judges together` : "not known: a price is missing, or nothing bounds the answer"],
      ["Bounds", [`${found.deadline_s} s`, found.max_cost ? `cost ${found.max_cost}` : ""].filter(Boolean).join(", ")],
      ["Shadows", found.shadows.map((one) => `${one.backend}/${one.model}`).join(", ") || "none"],
      ["Counted to", [call.key && `key ${call.key}`, call.tenant && `tenant ${call.tenant}`, call.team && `team ${call.team}`, call.feature && `feature ${call.feature}`].filter(Boolean).join(", ") || "nobody"],
      ["Prompt", `${format.count(call.num_prompt_tokens)} tokens by the estimate, ${format.count(call.num_prompt_chars)} characters${call.language ? `, language ${call.language}` : ""}`],
    ]), note("Nothing was sent. Limits and budgets were not asked."));
    say(`It would go to ${found.tiers[0]?.targets[0]?.backend ?? "nobody"} by ${found.rule}.`);
  }

  async chat() {
    const begin = performance.now();
    this.plan.hidden = true;
    this.result.hidden = false;
    const answer = element("div", { class: "answer", tabindex: "0", "aria-label": "Answer", "aria-busy": "true" });
    const facts = element("div");
    const attempts = element("div");
    this.result.replaceChildren(element("h2", {}, "What became of it"), facts, answer, attempts);
    const key = this.key.input.value.trim();
    const headers = { "Content-Type": "application/json", ...this.headers(), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const response = await send("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(this.body()), signal: this.control.signal });
    const id = response.headers.get("x-request-id") ?? "";
    const told = (extra = []) => facts.replaceChildren(list([
      ["Rule", said(response, "x-octavo-rule")], ["Tier", said(response, "x-octavo-tier")], ["Answered by", said(response, "x-octavo-target")],
      ["Escalation", said(response, "x-octavo-escalation")], ["Request", element("code", {}, id || NONE)], ...extra]));
    told();
    let error = null;
    try {
      if (!response.ok) throw await failure(response);
      await read(response, answer);
    } catch (problem) {
      error = problem;
    }
    answer.setAttribute("aria-busy", "false");
    const seconds = (performance.now() - begin) / 1000;
    const made = id ? await this.attempts(id) : [];
    const cost = made.reduce((sum, one) => sum + Number(one.cost), 0);
    told([["Took", format.seconds(seconds)], ["Cost", made.length ? `${format.money(cost, made[0].currency)} for ${made.length === 1 ? "one attempt" : `${made.length} attempts`}` : "not known"]]);
    attempts.replaceChildren(made.length ? attemptTable(made).place : note("No attempt is on record: the request was refused before one, or its record is on its way."));
    if (error) throw error;
    say(`Answered in ${format.seconds(seconds)}, ${made.length} attempts, ${format.money(cost, made[0]?.currency ?? "")}.`);
  }

  async attempts(id) {
    for (const wait of TRIES_MS) {
      await new Promise((done) => { setTimeout(done, wait); });
      const found = await get(`/requests/${encodeURIComponent(id)}`).catch(() => ({ attempts: [] }));
      if (found.attempts.length || this.control.signal.aborted) return found.attempts;
    }
    return [];
  }
}

function said(response, name) {
  const value = response.headers.get(name);
  try {
    return value === null ? NONE : decodeURIComponent(value);
  } catch {
    return value;
  }
}

async function read(response, place) {
  if (!(response.headers.get("content-type") ?? "").startsWith("text/event-stream")) {
    const { choices } = await response.json();
    place.textContent = choices.map((choice) => choice.message.content ?? JSON.stringify(choice.message.tool_calls ?? null)).join("\n\n");
    return;
  }
  let rest = "";
  for await (const piece of pieces(response.body.pipeThrough(new TextDecoderStream()))) {
    const lines = (rest + piece).split("\n");
    rest = lines.pop();
    for (const line of lines) put(line.trim(), place);
  }
  put(rest.trim(), place);
}

async function* pieces(stream) { // not every browser iterates over streams
  const reader = stream.getReader();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) yield piece.value;
}

function put(line, place) {
  if (!line.startsWith("data:") || line === "data: [DONE]") return;
  const event = JSON.parse(line.slice(5));
  if (event.error) throw new Error(event.error.message);
  const choice = event.choices?.[0];
  if (choice?.delta?.content) place.append(choice.delta.content);
  if (choice?.finish_reason && choice.finish_reason !== "stop") place.append(element("em", {}, ` (${choice.finish_reason})`));
}

function attemptTable(rows) {
  const table = new Table([
    { label: "No.", kind: "num", cell: (row) => format.count(row.number + 1) },
    { label: "Tier", kind: "cut", cell: (row) => row.tier },
    { label: "Target", kind: "cut", cell: (row) => `${row.backend}/${row.model}` },
    { label: "Became", cell: (row) => tag(row.status, ENDS[row.status] ?? "bad") },
    { label: "Judge", kind: "cut", cell: (row) => row.judge || NONE },
    { label: "Score", kind: "num", cell: (row) => (row.score == null ? NONE : row.score.toFixed(3)) },
    { label: "Reason", kind: "wide", cell: (row) => row.reason || NONE },
    { label: "Tokens", kind: "num", cell: (row) => `${format.count(row.num_input_tokens)} + ${format.count(row.num_output_tokens)}` },
    { label: "Cost", kind: "num", cell: (row) => format.money(Number(row.cost), row.currency) },
    { label: "First token", kind: "num", cell: (row) => format.latency(row.ttft_s) },
    { label: "Time", kind: "num", cell: (row) => format.latency(row.e2e_s) },
  ], { caption: "Attempts" });
  table.set(rows);
  return table;
}
