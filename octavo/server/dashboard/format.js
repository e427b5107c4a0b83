// How numbers are written, and elements made: of text alone, never of markup.

const NONE = "–";

function digits(value, num = 3) {
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  const places = Math.max(0, Math.min(9, num - 1 - size));
  return value.toLocaleString("en-US", { minimumFractionDigits: 0, maximumFractionDigits: places });
}

const format = {
  count: (v) => (v == null ? NONE : Math.round(v).toLocaleString("en-US")),
  short(v) {
    if (v == null) return NONE;
    for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) if (Math.abs(v) >= size) return digits(v / size) + unit;
    return digits(v);
  },
  rate: (v) => (v == null ? NONE : v >= 1000 ? Math.round(v).toLocaleString("en-US") : digits(v)),
  share: (v) => (v == null ? NONE : v > 0 && v < 0.001 ? "<0.1%" : `${digits(100 * v, v < 0.1 ? 2 : 3)}%`),
  latency(v) {
    if (v == null) return NONE;
    if (v < 0.9995) return `${digits(1000 * v)} ms`;
    return v < 99.95 ? `${digits(v)} s` : format.duration(v);
  },
  seconds: (v) => (v == null ? NONE : v > 0 && v < 0.9995 ? `${digits(1000 * v)} ms` : v < 999.5 ? `${digits(v)} s` : format.duration(v)),
  duration(v) {
    const s = Math.max(0, Math.round(v));
    const [d, h, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
    if (d) return `${d} d ${h} h`;
    if (h) return `${h} h ${m} min`;
    return m ? `${m} min ${s % 60} s` : `${s} s`;
  },
  money(v, currency, num = 4) {
    if (v == null) return NONE;
    if (v > 0 && v < 1e-7) return `<0.0000001 ${currency}`;
    return `${Math.abs(v) >= 100 ? v.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 }) : digits(v, num)} ${currency}`;
  },
  clock: (t) => new Date(1000 * t).toLocaleTimeString("en-GB"),
};

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (key === "class") made.className = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function svg(name, attributes = {}, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const byId = (id) => document.getElementById(id);

// Words with `code` between backticks.
function words(text) {
  return text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}
