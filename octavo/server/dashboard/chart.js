// Line charts in SVG: axes, one or two lines, values at the pointer or, by arrow keys, anywhere.

const BOX = { width: 320, height: 132, left: 40, right: 6, top: 8, bottom: 18 };
const SPAN_S = 600;

function niceTicks(max, isWhole) {
  const rough = max / 3;
  const size = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].find((m) => m * size >= rough * 0.999) * size;
  if (isWhole) step = Math.max(1, Math.ceil(step));
  const ticks = [0];
  while (ticks[ticks.length - 1] < max * 0.999) ticks.push(ticks.length * step);
  return ticks;
}

class Chart {
  // spec: title, unit, format (of values), axis (of ticks), lines: [{column, label, bound}],
  // max: a fixed top, least: the least top, whole: ticks are integers, empty: words for no value.
  constructor(spec) {
    this.spec = spec;
    this.hover = null; // index of the value that is pointed at
    this.keys = spec.lines.map(() => element("b"));
    this.when = element("span", { class: "muted" });
    const legend = spec.lines.map((line, index) =>
      element("span", { class: "key" }, element("i", { class: `swatch ${"ab"[index]}` }), `${line.label} `, this.keys[index]));
    this.svg = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", tabindex: "0" });
    this.figure = element("figure", { class: "chart" },
      element("figcaption", {}, element("h2", {}, spec.title, this.when), ...legend), this.svg);
    this.svg.addEventListener("pointermove", (event) => this.pointAt(event.clientX));
    this.svg.addEventListener("pointerdown", (event) => this.pointAt(event.clientX));
    for (const name of ["pointerleave", "blur"]) this.svg.addEventListener(name, () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.onKey(event));
  }

  onKey(event) {
    if (!this.series) return;
    const last = this.series.times.length - 1;
    const now = this.hover ?? last;
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, PageUp: now - 15, PageDown: now + 15, Home: 0, End: last, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.point(to === null ? null : Math.max(0, Math.min(last, to)));
  }

  pointAt(clientX) {
    if (!this.series || !this.series.times.length) return;
    const box = this.svg.getBoundingClientRect();
    const x = ((clientX - box.left) / box.width) * BOX.width;
    const times = this.series.times;
    let best = 0;
    times.forEach((t, i) => { if (Math.abs(this.x(t) - x) < Math.abs(this.x(times[best]) - x)) best = i; });
    this.point(best);
  }

  point(index) {
    this.hover = index;
    if (this.series) this.draw(this.series, this.end);
  }

  x(t) {
    return BOX.width - BOX.right - ((this.end - t) / SPAN_S) * (BOX.width - BOX.left - BOX.right);
  }

  y(value) {
    return BOX.height - BOX.bottom - (value / this.top) * (BOX.height - BOX.top - BOX.bottom);
  }

  show(value, line) {
    if (value == null) return NONE;
    if (line.bound && value <= this.series[line.bound]) return `<${this.spec.format(this.series[line.bound])}`;
    return this.spec.format(value);
  }

  draw(series, end) {
    const { spec } = this;
    const shift = this.series && this.hover !== null ? this.series.times[this.hover] : null;
    if (shift !== null && series !== this.series) { // stay at the moment that is pointed at
      const moved = series.times.findIndex((t) => Math.abs(t - shift) < series.step_s / 2);
      this.hover = moved < 0 ? null : moved;
    }
    Object.assign(this, { series, end });
    const columns = spec.lines.map((line) => series[line.column]);
    const known = columns.flat().filter((v) => v != null);
    const ticks = niceTicks(spec.max ?? Math.max(spec.least ?? 1, ...known), spec.whole);
    this.top = ticks[ticks.length - 1];
    this.svg.replaceChildren(...this.axes(ticks));
    if (!known.length) {
      this.svg.append(svg("text", { x: (BOX.width + BOX.left) / 2, y: BOX.height / 2 - 4, "text-anchor": "middle", class: "empty" }, spec.empty ?? "nothing yet"));
    }
    columns.forEach((column, index) => this.line(series.times, column, "ab"[index], index === 0));
    const at = this.hover ?? series.times.length - 1;
    this.when.textContent = this.hover === null ? spec.unit : format.clock(series.times[at]);
    if (this.hover !== null) this.cross(at, columns);
    const said = spec.lines.map((line, index) => {
      const text = at < 0 ? NONE : this.show(columns[index][at], line);
      this.keys[index].textContent = text;
      return `${line.label} ${text}`;
    });
    this.svg.setAttribute("aria-label", `${spec.title}, ${spec.unit}, ${this.hover === null ? "now" : this.when.textContent}: ${said.join(", ")}. Arrow keys move in time.`);
  }

  axes(ticks) {
    const right = BOX.width - BOX.right;
    const marks = [];
    for (const tick of ticks) {
      const y = this.y(tick);
      marks.push(svg("line", { x1: BOX.left, x2: right, y1: y, y2: y, class: tick ? "grid" : "axis" }));
      marks.push(svg("text", { x: BOX.left - 6, y: y + 3.5, "text-anchor": "end" }, tick ? this.spec.axis(tick) : "0"));
    }
    for (const [ago, label, anchor] of [[600, "−10 min", "start"], [300, "−5 min", "middle"], [0, "now", "end"]]) {
      marks.push(svg("text", { x: this.x(this.end - ago), y: BOX.height - 4, "text-anchor": anchor }, label));
    }
    return marks;
  }

  line(times, values, name, isFilled) {
    let run = [];
    const runs = [];
    values.forEach((value, index) => {
      const isGap = index && times[index] - times[index - 1] > 5 * this.series.step_s;
      if ((value == null || isGap) && run.length) { runs.push(run); run = []; }
      if (value != null && times[index] >= this.end - SPAN_S) run.push([this.x(times[index]).toFixed(1), this.y(Math.min(value, this.top)).toFixed(1)]);
    });
    if (run.length) runs.push(run);
    for (const points of runs) {
      const path = points.map((p) => p.join(" ")).join("L");
      if (isFilled) {
        const base = this.y(0).toFixed(1);
        this.svg.append(svg("path", { d: `M${points[0][0]} ${base}L${path}L${points[points.length - 1][0]} ${base}Z`, class: `area ${name}` }));
      }
      this.svg.append(svg("path", { d: `M${path}${points.length === 1 ? "h0.1" : ""}`, class: `line ${name}` }));
    }
  }

  cross(at, columns) {
    const x = this.x(this.series.times[at]);
    this.svg.append(svg("line", { x1: x, x2: x, y1: BOX.top, y2: BOX.height - BOX.bottom, class: "cross" }));
    columns.forEach((column, index) => {
      if (column[at] != null) this.svg.append(svg("circle", { cx: x, cy: this.y(Math.min(column[at], this.top)), r: 3, class: `dot ${"ab"[index]}` }));
    });
  }
}
