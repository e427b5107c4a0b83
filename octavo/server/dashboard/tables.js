// What is told in tables, bars and lists.

function table(columns, rows) {
  // columns: [label, class, cell]; a cell is a text or an element
  const head = columns.map(([label, name]) => element("th", { scope: "col", class: name }, label));
  const body = rows.map((row) => element("tr", {}, ...columns.map(([label, name, cell]) => {
    const shown = cell(row);
    return element("td", { class: name, "data-label": label, title: name === "mono" ? shown : null }, shown);
  })));
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}

function say(place, text) {
  place.replaceChildren(element("p", { class: "say" }, ...words(text)));
}

function featureName(name) {
  return name === "" ? element("em", {}, "untagged") : name;
}

const DEVICE_WORDS = {
  requests: "requests", idle: "idle: no request", startup: "start-up", scheduler: "planning", messages: "messages",
  launch: "launching steps", grammar: "waiting for grammars", run_ahead: "ran ahead", failed: "failed steps",
};

function drawDevice(data) {
  const all = Object.entries(DEVICE_WORDS).map(([name, label], index) => ({ label, index, value: data.device_seconds[name] ?? 0 }));
  const total = all.reduce((sum, part) => sum + part.value, 0);
  const isMetered = total > 0;
  byId("device-note").textContent = isMetered
    ? `${format.duration(total)} of ${data.engine.num_devices === 1 ? "one device" : `${data.engine.num_devices} devices`} since the engine began.`
    : "";
  byId("device-bar").hidden = byId("device-legend").hidden = !isMetered;
  if (!isMetered) {
    byId("device-note").textContent = "This engine is not metered (--no-metering), so nobody knows.";
    return;
  }
  const parts = all.map(({ index, value }) => {
    const part = element("i", { class: `c${index}` });
    part.style.width = `${(100 * value) / total}%`;
    return part;
  });
  byId("device-bar").replaceChildren(...parts);
  const legend = all.filter((part) => part.value > 0);
  byId("device-bar").setAttribute("aria-label", legend.map((p) => `${p.label} ${format.share(p.value / total)}`).join(", "));
  byId("device-legend").replaceChildren(...legend.map((part) => element("li", {},
    element("i", { class: `swatch c${part.index}` }), `${part.label} `, element("b", {}, format.share(part.value / total)),
    element("span", { class: "muted" }, ` ${format.seconds(part.value)}`))));
}

function drawSpend(data, isToday) {
  const { ledger } = data;
  const place = byId("spend");
  const note = byId("spend-note");
  const rows = isToday ? ledger.features : data.spend;
  note.textContent = "";
  if (isToday) {
    if (ledger.state === "off") return say(place, "This server keeps no ledger (`--ledger none`), so it does not know what was spent before it began. Start it with `--ledger FILE`, or look at “Since start”.");
    if (ledger.state === "reading") return say(place, "Reading the ledger…");
    if (ledger.state === "failed" && ledger.read_at == null) return say(place, `The ledger cannot be read: ${ledger.message}. Records wait meanwhile and are written later; see docs/metering.md.`);
    const since = ledger.state === "failed" ? `The ledger cannot be read now (${ledger.message}); these numbers are of ${format.clock(ledger.read_at)}.` : `Read at ${format.clock(ledger.read_at)}.`;
    note.textContent = `${ledger.day} (UTC), all servers that write to this ledger. ${since}`;
    if (ledger.num_lost) note.textContent += ` ${format.count(ledger.num_lost)} records were lost: see the server's log.`;
  } else {
    note.textContent = `Ended requests of this server since ${format.clock(data.started)}, ${format.duration(data.now - data.started)} ago. “other” is what came after the first ${32} features.`;
  }
  if (data.price == null) note.textContent += " No price is set, so there is device time but no cost: start with --price-per-device-hour.";
  if (!rows.length) return say(place, "No request has ended yet. Name a feature with the header `X-Octavo-Feature: search`.");
  const largest = Math.max(...rows.map((row) => row.gpu_seconds), 1e-9);
  place.replaceChildren(table([
    ["Feature", "name", (r) => featureName(r.feature)],
    ["", "share", (r) => {
      const inner = element("i");
      inner.style.width = `${(100 * r.gpu_seconds) / largest}%`;
      return element("span", { class: "meter" }, inner);
    }],
    ["Cost", "num", (r) => format.money(r.cost, r.currency)],
    ["Device time", "num", (r) => format.seconds(r.gpu_seconds)],
    ["Waste", "num", (r) => format.share(r.gpu_seconds ? r.waste_seconds / r.gpu_seconds : 0)],
    ["Requests", "num", (r) => format.count(r.num_requests)],
    ["Cost per request", "num", (r) => format.money(r.cost == null ? null : r.cost / r.num_requests, r.currency)],
    ["Tokens in", "num", (r) => format.short(r.num_input_tokens)],
    ["Cached", "num", (r) => format.share(r.num_input_tokens ? r.num_cached_tokens / r.num_input_tokens : null)],
    ["Tokens out", "num", (r) => format.short(r.num_output_tokens)],
  ], rows));
  if (isToday && ledger.num_more) place.append(element("p", { class: "say" }, `${ledger.num_more} more features: octavo cost report --by feature`));
}

const ENDS = { error: "bad", abort: "warn", timeout: "bad" };

function drawSlowest(data) {
  const place = byId("slowest");
  byId("slow-note").textContent = `Of those that ended in the last ${data.slow_s / 60} minutes${data.servers.num_api_servers > 1 ? `, in all ${data.servers.num_api_servers} API servers` : ""}. What they asked is kept nowhere.`;
  const shown = JSON.stringify(data.slowest); // what does not change can be selected and scrolled
  if (shown === drawSlowest.shown) return;
  drawSlowest.shown = shown;
  if (!data.slowest.length) return say(place, "No request has ended in this time.");
  place.replaceChildren(table([
    ["Ended", "", (r) => format.clock(r.ended_at)],
    ["Feature", "name", (r) => featureName(r.feature)],
    ["Whole time", "num", (r) => format.latency(r.e2e)],
    ["First token", "num", (r) => format.latency(r.ttft)],
    ["Tokens in", "num", (r) => format.count(r.num_input_tokens)],
    ["Cached", "num", (r) => format.count(r.num_cached_tokens)],
    ["Tokens out", "num", (r) => format.count(r.num_output_tokens)],
    ["Device time", "num", (r) => format.seconds(r.gpu_seconds)],
    ["Cost", "num", (r) => format.money(r.cost, r.currency)],
    ["End", "", (r) => element("span", { class: `tag ${ENDS[r.finish_reason] ?? ""}` }, r.finish_reason)],
    ["Route", "mono", (r) => r.route],
    ["Request", "mono", (r) => r.request_id],
  ], data.slowest));
}

function drawList(place, pairs) {
  place.replaceChildren(...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function drawFacts(data) {
  const { engine, servers, totals, ledger } = data;
  const ends = Object.entries(totals.ends).filter(([, num]) => num).map(([name, num]) => `${format.count(num)} ${name}`);
  drawList(byId("facts"), [
    ["Names of the model", data.models.join(", ")],
    ["Architecture", `${engine.architecture}, ${engine.dtype}`],
    ["Device", engine.num_devices > 1 ? `${engine.num_devices} × ${engine.device}` : engine.device],
    ["Context", `${format.count(engine.max_model_len)} tokens`],
    ["KV cache", `${format.count(engine.num_kv_tokens)} tokens`],
    ["Serves", engine.tasks.join(", ")],
    ["Requests ended", ends.join(", ") || "none"],
    ["Refused: queue full", format.count(totals.num_rejected)],
    ["Tokens in, out", `${format.count(totals.num_prompt_tokens)}, ${format.count(totals.num_output_tokens)}`],
    ["Engine restarts", format.count(servers.num_engine_restarts)],
    ["API servers, restarts", `${servers.num_api_servers}, ${servers.num_api_server_restarts}`],
    ["Ledger records", ledger.state === "off" ? "no ledger" : `${format.count(ledger.num_written)} written, ${format.count(ledger.num_spilled)} spilled, ${format.count(ledger.num_lost)} lost`],
  ]);
  drawList(byId("settings"), Object.entries(data.settings));
}
