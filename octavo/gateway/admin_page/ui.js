// Tables, dialogs, fields and words that all parts of the page use. All that is shown is made of text, never of markup.

import { NONE, byId, element, words } from "./format.js";

export function say(text) { // to those who listen and those who look
  byId("said").textContent = "";
  requestAnimationFrame(() => { byId("said").textContent = text; });
}

export function note(text) {
  return element("p", { class: "say" }, ...words(text));
}

export function errorText(error) {
  return error.param ? `${error.message} (${error.param})` : error.message;
}

export function button(label, onClick, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", onClick);
  return made;
}

export function tag(text, kind = "") {
  return element("span", { class: `tag ${kind}` }, text);
}

export function named(text, otherwise) { // of a tag that may be missing
  return text === "" || text == null ? element("em", {}, otherwise) : text;
}

export function list(pairs) {
  return element("dl", { class: "pairs" }, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

export function day(text) {
  return text ? text.slice(0, 10) : NONE;
}

export function moment(text) { // a time of the API, in UTC as everything that is counted by days
  return text ? text.slice(0, 19).replace("T", " ") : NONE;
}

export function ago(text, now = Date.now()) {
  if (!text) return "never";
  const seconds = Math.max(0, (now - Date.parse(text)) / 1000);
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
  return "just now";
}

export class Table {
  // columns: {label, kind (a class), cell(row): a text or an element, sort(row): what to sort by}
  // options: caption (read to those who cannot see), size (rows of a page; 0: all), empty (words), key(row), sorted: [index, isDown]
  constructor(columns, options) {
    this.columns = columns;
    this.options = { size: 0, empty: "Nothing yet.", ...options };
    this.rows = [];
    this.page = 0;
    this.sorted = this.options.sorted ?? null;
    this.heads = columns.map((column, index) => this.head(column, index));
    this.body = element("tbody");
    this.table = element("table", {}, element("caption", { class: "unseen" }, this.options.caption),
      element("thead", {}, element("tr", {}, ...this.heads)), this.body);
    this.empty = note(this.options.empty);
    this.where = element("span", { class: "muted", role: "status" });
    this.before = button("Previous page", () => this.turn(-1));
    this.after = button("Next page", () => this.turn(1));
    this.pager = element("div", { class: "pager", hidden: true }, this.before, this.where, this.after);
    this.place = element("div", {}, element("div", { class: "table" }, this.table), this.empty, this.pager);
    this.draw();
  }

  head(column, index) {
    if (!column.sort) return element("th", { scope: "col", class: column.kind ?? "" }, column.label);
    return element("th", { scope: "col", class: column.kind ?? "" }, button(column.label, () => this.sortBy(index), { class: "sort" }));
  }

  sortBy(index) {
    const isDown = this.sorted?.[0] === index ? !this.sorted[1] : this.columns[index].kind === "num";
    this.sorted = [index, isDown];
    this.page = 0;
    this.draw();
    say(`Sorted by ${this.columns[index].label}, ${isDown ? "largest first" : "smallest first"}.`);
  }

  turn(by) {
    this.page += by;
    this.draw();
    const next = by > 0 ? this.after : this.before;
    (next.disabled ? (by > 0 ? this.before : this.after) : next).focus();
  }

  set(rows) {
    this.rows = rows;
    this.draw();
  }

  inOrder() {
    if (!this.sorted) return this.rows;
    const [index, isDown] = this.sorted;
    const { sort } = this.columns[index];
    const compare = (a, b) => {
      if (a == null || b == null) return (a == null) - (b == null); // what is not known comes last
      const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return isDown ? -order : order;
    };
    return this.rows.map((row) => [sort(row), row]).sort(([a], [b]) => compare(a, b)).map(([, row]) => row);
  }

  draw() {
    const size = this.options.size || Math.max(1, this.rows.length);
    const num = Math.max(1, Math.ceil(this.rows.length / size));
    this.page = Math.max(0, Math.min(num - 1, this.page));
    const begin = this.page * size;
    const shown = this.inOrder().slice(begin, begin + size);
    this.body.replaceChildren(...shown.map((row) => this.row(row)));
    this.heads.forEach((head, index) => {
      if (this.sorted?.[0] === index) head.setAttribute("aria-sort", this.sorted[1] ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    this.table.hidden = !this.rows.length;
    this.empty.hidden = Boolean(this.rows.length);
    this.pager.hidden = num === 1;
    this.before.disabled = this.page === 0;
    this.after.disabled = this.page === num - 1;
    this.where.textContent = `${begin + 1} to ${begin + shown.length} of ${this.rows.length}`;
  }

  row(row) {
    const cells = this.columns.map((column) => {
      const shown = column.cell(row);
      const title = typeof shown === "string" && /\b(name|cut|mono)\b/.test(column.kind ?? "") ? shown : null;
      return element("td", { class: column.kind ?? "", "data-label": column.label, title }, shown);
    });
    return element("tr", { "data-key": this.options.key?.(row) ?? null }, ...cells);
  }
}

let numFields = 0;

// A labelled input; `hint` is told with it. kind: text, number, password, search, textarea, checkbox, select (choices: [value, label])
export function field(label, { kind = "text", value = "", hint = "", choices = [], ...attributes } = {}) {
  const id = `field-${++numFields}`;
  let input;
  if (kind === "textarea") input = element("textarea", { id, ...attributes });
  else if (kind === "select") input = element("select", { id, ...attributes }, ...choices.map(([of, text]) => element("option", { value: of }, text)));
  else input = element("input", { id, type: kind, autocomplete: "off", spellcheck: "false", ...attributes });
  if (kind === "checkbox") input.checked = Boolean(value);
  else if (value !== "" || kind !== "select") input.value = value ?? "";
  const parts = kind === "checkbox" ? [input, element("label", { for: id }, label)] : [element("label", { for: id }, label), input];
  if (hint) {
    input.setAttribute("aria-describedby", `${id}-hint`);
    parts.push(element("span", { class: "hint", id: `${id}-hint` }, ...words(hint)));
  }
  return { input, place: element("div", { class: `field ${kind}` }, ...parts) };
}

// Boxes of which any number is ticked.
export function boxes(label, names, ticked) {
  const made = names.map((name) => field(name, { kind: "checkbox", value: ticked.includes(name) }));
  const place = element("fieldset", {}, element("legend", {}, label), ...made.map((box) => box.place));
  return { place, value: () => names.filter((_, index) => made[index].input.checked) };
}

export function names(text) { // apart by commas
  return text.split(",").map((part) => part.trim()).filter(Boolean);
}

// A dialog over the page. Escape and the first button close it, but not while work() runs: what it made must be shown.
// work() may fail: the dialog stays open then and says why. done() gets what work() gave, when the dialog is gone.
export function dialog({ title, content, action, danger = false, work, done = () => {}, onClose = () => {} }) {
  const id = `dialog-${++numFields}`;
  const refusal = element("p", { class: "error", role: "alert" });
  const close = button(action ? "Cancel" : "Close", () => end());
  const go = action ? element("button", { type: "submit", class: danger ? "danger" : "primary" }, action) : "";
  const form = element("form", {}, element("h2", { id }, title), ...content, refusal, element("div", { class: "row end" }, close, go));
  const made = element("dialog", { "aria-labelledby": id, role: danger ? "alertdialog" : null }, form);
  const from = document.activeElement;
  let isBusy = false;
  const end = () => {
    if (isBusy || !made.isConnected) return;
    made.close();
    made.remove();
    if (from?.isConnected) from.focus();
    onClose();
  };
  made.addEventListener("cancel", (event) => { event.preventDefault(); end(); });
  // What is wrong must be seen: a browser does not send, and cannot show it where it is folded away.
  form.addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!action) return end();
    if (isBusy) return;
    isBusy = true;
    close.disabled = go.disabled = true;
    refusal.textContent = "";
    let result;
    try {
      result = await work();
    } catch (error) {
      refusal.textContent = errorText(error);
    }
    isBusy = close.disabled = go.disabled = false;
    if (result === undefined) return go.focus();
    end();
    done(result);
  });
  document.body.append(made);
  made.showModal();
  if (danger) close.focus(); // the least harmful
}
