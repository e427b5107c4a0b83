// Asks the server every two seconds while the page can be seen, and draws what it says.

const EVERY_MS = 2000;
const PATIENCE_MS = 8000;
const KEY = "octavo-api-key"; // in this tab's storage only

const percent = { format: format.share, axis: (v) => `${Math.round(100 * v)}%`, max: 1 };
const latency = { format: format.latency, axis: (v) => (v < 1 ? `${digits(1000 * v)} ms` : `${digits(v)} s`), unit: "last minute", least: 0.001 };
const CHARTS = [
  { title: "Requests", unit: "in the engine", format: format.count, axis: format.short, least: 2, whole: true, lines: [{ column: "running", label: "running" }, { column: "waiting", label: "waiting" }] },
  { title: "Throughput", unit: "tok/s", format: (v) => `${format.rate(v)} tok/s`, axis: format.short, least: 1, lines: [{ column: "output_rate", label: "out" }, { column: "prompt_rate", label: "in" }] },
  { title: "Time to first token", ...latency, empty: "no first token in the last minute", lines: [{ column: "ttft_p50", label: "P50", bound: "ttft_bound" }, { column: "ttft_p95", label: "P95", bound: "ttft_bound" }] },
  { title: "Inter-token latency", ...latency, empty: "no token in the last minute", lines: [{ column: "itl_mean", label: "mean" }, { column: "itl_p95", label: "P95", bound: "itl_bound" }] },
  { title: "KV cache in use", unit: "of its blocks", ...percent, lines: [{ column: "kv_usage", label: "in use" }] },
  { title: "Prefix cache hits", unit: "last minute", ...percent, empty: "no prompt in the last minute", lines: [{ column: "prefix_hit_rate", label: "of prompt tokens" }] },
  { title: "Device busy with requests", unit: "last 10 s", ...percent, empty: "not metered", lines: [{ column: "device_busy", label: "busy" }] },
  { title: "End to end", ...latency, empty: "no request ended in the last minute", lines: [{ column: "e2e_p50", label: "P50" }, { column: "e2e_p95", label: "P95" }] },
].map((spec) => new Chart(spec));

const STATES = {
  up: ["good", "up", "", ""],
  draining: ["warn", "shutting down", "The server takes no new requests.", "Those that run get their answers, then it ends. Another server or a new start takes over."],
  engine_restarting: ["warn", "restarting", "The engine failed and is being started again.", "Requests get a 503 with Retry-After until the model is loaded. The server's log says why it failed."],
  engine_stuck: ["bad", "stuck", "The engine does not answer.", "It is killed and started anew if that lasts (`--watchdog-timeout`). The server's log says more."],
  engine_dead: ["bad", "down", "The engine is dead and is not started again.", "Restart the server; its log says why. It gave up after `--max-engine-restarts`."],
};

let data = null;
let receivedAt = 0;
let isPaused = false;
let showsToday = null; // null: whatever has numbers
let timer = 0;
let isAsking = false;
let key = sessionStorage.getItem(KEY);

function notice(title, text, kind) {
  const place = byId("notice");
  place.hidden = !title;
  place.className = `notice ${kind}`;
  place.querySelector("strong").textContent = title;
  place.querySelector("span").replaceChildren(...words(text));
}

function pill(kind, text) {
  const place = byId("state");
  if (place.textContent !== text) place.textContent = text;
  place.className = `pill ${kind}`;
}

function last(name) {
  const column = data.series[name];
  return column.length ? column[column.length - 1] : null;
}

function bounded(value, bound) {
  return value != null && value <= bound ? `<${format.latency(bound)}` : format.latency(value);
}

function drawTiles() {
  const { load, totals, series } = data;
  const gpuSeconds = data.spend.reduce((sum, row) => sum + row.gpu_seconds, 0);
  const cost = data.price == null ? null : data.spend.reduce((sum, row) => sum + row.cost, 0);
  const tiles = [
    ["Running", format.count(load.num_running), "", `${format.count(load.num_open)} open HTTP requests`],
    ["Waiting", format.count(load.num_waiting), "", totals.num_rejected ? `${format.count(totals.num_rejected)} refused so far` : "none refused"],
    ["Output", format.rate(last("output_rate")), " tok/s", `in ${format.rate(last("prompt_rate"))} tok/s`],
    ["TTFT P95", bounded(last("ttft_p95"), series.ttft_bound), "", `P50 ${bounded(last("ttft_p50"), series.ttft_bound)}`],
    ["ITL P95", bounded(last("itl_p95"), series.itl_bound), "", `mean ${format.latency(last("itl_mean"))}`],
    ["KV cache", format.share(load.kv_usage), "", last("preemptions") ? `${format.count(last("preemptions"))} preemptions in a minute` : "no preemptions"],
    ["Prefix hits", format.share(last("prefix_hit_rate")), "", `since start ${format.share(totals.prefix_queries ? totals.prefix_hits / totals.prefix_queries : null)}`],
    data.price == null
      ? ["Device time, requests", format.seconds(gpuSeconds), "", "no price set, so no cost"]
      : ["Spent since start", format.money(cost, "", 3).trim(), ` ${data.currency}`, `at ${data.price.toFixed(2)} a device hour`],
  ];
  byId("tiles").replaceChildren(...tiles.map(([label, value, unit, more]) => element("div", {}, element("dt", {}, label),
    element("dd", { class: "value" }, value, element("small", {}, unit)), element("dd", { class: "more" }, more))));
}

function drawSpendTabs() {
  const isToday = showsToday ?? data.ledger.state !== "off";
  byId("spend-today").setAttribute("aria-pressed", isToday);
  byId("spend-start").setAttribute("aria-pressed", !isToday);
  drawSpend(data, isToday);
}

function draw() {
  const { state } = data;
  const [kind, word, title, text] = STATES[state.code] ?? ["bad", state.code, "The engine does not answer.", "The server's log says why."];
  pill(kind, word);
  notice(title, text + (state.message ? ` It says: ${state.message}.` : ""), kind);
  byId("model").textContent = data.models[0];
  document.title = `${data.models[0]} – Octavo`;
  byId("about").textContent = `${data.version} on ${data.engine.device}, up ${format.duration(data.now - data.started)}`;
  byId("main").hidden = false;
  byId("main").classList.remove("stale");
  drawTiles();
  CHARTS.forEach((chart) => chart.draw(data.series, data.now));
  drawDevice(data);
  drawSpendTabs();
  drawSlowest(data);
  drawFacts(data);
}

function showAge() {
  if (!data) return;
  const age = (Date.now() - receivedAt) / 1000;
  byId("age").textContent = isPaused ? `paused ${format.duration(age)} ago` : age < 5 ? "live" : `${format.duration(age)} old`;
}

function askForKey(refusal) {
  byId("main").hidden = true;
  byId("login").hidden = false;
  byId("refusal").textContent = refusal;
  byId("age").textContent = "";
  notice("", "", "");
  pill("", "locked");
  byId("key").focus();
}

function forget() {
  key = null;
  sessionStorage.removeItem(KEY);
  byId("forget").hidden = true;
}

function fail(title, text) {
  pill("bad", "no answer");
  byId("main").classList.add("stale");
  notice(title, text, "bad");
}

// Any API server may answer, and one that was started anew knows less of the past than this page.
function joined(before, after) {
  if (!before || before.models[0] !== after.models[0]) return after;
  if (after.ledger.state !== "failed" && (before.ledger.read_at ?? 0) > (after.ledger.read_at ?? 0)) after.ledger = before.ledger;
  const first = (after.series.times[0] ?? after.now) - after.series.step_s / 2;
  const end = before.series.times.findIndex((t) => t >= first);
  const begin = before.series.times.findIndex((t) => t >= after.now - SPAN_S);
  if (begin < 0) return after;
  for (const [name, column] of Object.entries(before.series)) {
    if (Array.isArray(column)) after.series[name] = [...column.slice(begin, end < 0 ? undefined : Math.max(begin, end)), ...after.series[name]];
  }
  return after;
}

async function ask() {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch("dashboard/data", { headers, cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (response.status === 401) {
    const isWrong = key !== null;
    forget();
    askForKey(isWrong ? "The server does not know this key." : "");
    return false;
  }
  if (!response.ok) {
    fail(`The server answers ${response.status}.`, "Trying again every few seconds. Its log says why.");
    return true;
  }
  data = joined(data, await response.json());
  receivedAt = Date.now();
  byId("login").hidden = true;
  byId("forget").hidden = !key;
  draw();
  return true;
}

async function tick() {
  clearTimeout(timer);
  if (isPaused || isAsking || document.hidden) return;
  isAsking = true;
  let goesOn = true;
  try {
    goesOn = await ask();
  } catch (error) {
    if (error instanceof TypeError || error.name === "TimeoutError" || error.name === "AbortError") {
      fail("The server does not answer.", `It may be restarting, or the network is down; trying again every few seconds.${data ? " What you see is old." : ""}`);
    } else {
      fail("This page made a mistake.", `Reload it. It says: ${error.message}`);
      console.error(error);
    }
  }
  isAsking = false;
  showAge();
  if (goesOn) timer = setTimeout(tick, EVERY_MS);
}

byId("charts").append(...CHARTS.map((chart) => chart.figure));
byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = byId("key").value.trim();
  byId("key").value = "";
  if (!/^[\x21-\x7e]+$/.test(given)) return askForKey("A key has letters, digits and signs only.");
  key = given;
  sessionStorage.setItem(KEY, key);
  tick();
});
byId("forget").addEventListener("click", () => { forget(); clearTimeout(timer); askForKey(""); });
byId("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  byId("pause").setAttribute("aria-pressed", isPaused);
  byId("pause").textContent = isPaused ? "Go on" : "Pause";
  if (isPaused) clearTimeout(timer);
  showAge();
  tick();
});
byId("spend-today").addEventListener("click", () => { showsToday = true; drawSpendTabs(); });
byId("spend-start").addEventListener("click", () => { showsToday = false; drawSpendTabs(); });
document.addEventListener("visibilitychange", tick);
setInterval(showAge, 1000);
tick();
