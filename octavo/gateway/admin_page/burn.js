// What is left of a budget over its period, in SVG: the line, an even pace to zero, and where the line points.

import { digits, element, svg } from "./format.js";

const SIDES = { height: 170, left: 52, right: 12, top: 10, bottom: 22 };

// points: [time in ms, left]; ceiling: what there was; write(value): as text; width: of the place, pixels
export function burnDown({ points, begin, end, now, ceiling, write, label, width }) {
  const BOX = { ...SIDES, width: Math.max(280, width) };
  const least = Math.min(0, ...points.map(([, left]) => left)); // a soft budget may be overspent
  const x = (time) => BOX.left + ((time - begin) / (end - begin)) * (BOX.width - BOX.left - BOX.right);
  const y = (left) => BOX.top + ((ceiling - left) / (ceiling - least)) * (BOX.height - BOX.top - BOX.bottom);
  const line = (from, to, name) => svg("line", { x1: x(from[0]).toFixed(1), y1: y(from[1]).toFixed(1), x2: x(to[0]).toFixed(1), y2: y(to[1]).toFixed(1), class: name });
  const [at, left] = points.at(-1);
  const runsOut = used(points) > 0 && at > begin ? begin + ((at - begin) * ceiling) / (ceiling - left) : Infinity;
  const goes = Math.min(end, runsOut);
  const expected = ceiling - ((ceiling - left) * (goes - begin)) / (at - begin);
  const told = `${label}: ${write(left)} of ${write(ceiling)} left${outlook(left, runsOut, end)}.`;
  const made = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": told });
  for (const part of [0, 0.5, 1]) {
    const value = part * ceiling;
    made.append(svg("line", { x1: BOX.left, x2: BOX.width - BOX.right, y1: y(value), y2: y(value), class: part ? "grid" : "axis" }),
      svg("text", { x: BOX.left - 6, y: y(value) + 3.5, "text-anchor": "end" }, part ? short(value) : "0"));
  }
  for (const [time, anchor] of [[begin, "start"], [(begin + end) / 2, "middle"], [end, "end"]]) {
    made.append(svg("text", { x: x(time), y: BOX.height - 5, "text-anchor": anchor }, dayAndHour(time, end - begin)));
  }
  made.append(line([begin, ceiling], [end, 0], "pace"));
  const path = points.map(([time, value], index) => `${index ? `H${x(time).toFixed(1)}V` : `M${x(time).toFixed(1)} `}${y(value).toFixed(1)}`).join("");
  made.append(svg("path", { d: `${path}V${y(0)}H${x(begin)}Z`, class: "area a" }), svg("path", { d: path, class: "line a" }));
  if (Number.isFinite(expected) && goes > at) made.append(line([at, left], [goes, Math.max(0, expected)], "trend"));
  made.append(svg("circle", { cx: x(Math.min(now, end)), cy: y(left), r: 3.5, class: "dot a" }));
  return element("figure", { class: "burn" }, made, element("figcaption", { class: "muted" }, told,
    element("span", { class: "keys" }, " ", element("i", { class: "swatch a" }), "left, dashed: an even pace, dotted: as it goes")));
}

const used = (points) => points[0][1] - points.at(-1)[1];

function outlook(left, runsOut, end) {
  if (left <= 0) return "; it is used up";
  if (runsOut < end) return `; at this pace it is used up on ${stamp(runsOut)} UTC, before its period ends on ${stamp(end)}`;
  return "; at this pace it lasts";
}

const stamp = (time) => new Date(time).toISOString().slice(0, 16).replace("T", " ");

function dayAndHour(time, span) {
  const text = new Date(time).toISOString();
  return span <= 2 * 86400e3 ? text.slice(11, 16) : text.slice(5, 10);
}

function short(value) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) if (value >= size) return digits(value / size) + unit;
  return digits(value);
}
