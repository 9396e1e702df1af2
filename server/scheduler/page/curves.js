/* Curves over the steps of a run: a line of averages, a band from least to greatest, and a reading line that pointer
 * and arrow keys move on all curves at once. */
import { count, el, number, setText, show, svg } from "/text.js";

/* A point as /api/series has it. */
const FIRST = 0, LAST = 1, LOSS = 2, LEAST = 3, MOST = 4, LR = 5, RATE = 6;

const KINDS = {
  loss: { name: "Loss", value: LOSS, band: [LEAST, MOST], zero: false },
  rate: { name: "Images per second", value: RATE, zero: true },
  lr: { name: "Learning rate", value: LR, zero: true },
};

const LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 24;

const stepOf = (p) => (p[FIRST] + p[LAST]) / 2;
const steps = (p) => (p[FIRST] === p[LAST] ? `step ${count(p[FIRST])}` : `steps ${count(p[FIRST])}–${count(p[LAST])}`);

/* Fewer points for a picture: groups of steps that begin at the same places while the run goes on, so that the curve
 * grows and does not flicker. */
function thin(points, most) {
  const from = points.length ? points[0][FIRST] : 0, to = points.length ? points[points.length - 1][LAST] : 0;
  let length = 1;
  while ((to - from + 1) / length > most) length *= 2;
  const groups = [];
  for (const p of points) {
    const group = Math.floor((p[FIRST] - 1) / length), last = groups[groups.length - 1];
    if (last && last.group === group) last.points.push(p);
    else groups.push({ group, points: [p] });
  }
  return groups.map((g) => (g.points.length === 1 ? g.points[0] : together(g.points)));
}

function together(points) {
  const some = (at) => points.filter((p) => p[at] !== null);
  const mean = (at) => {
    const there = some(at), weight = (p) => p[LAST] - p[FIRST] + 1;
    return there.length ? there.reduce((sum, p) => sum + weight(p) * p[at], 0) / there.reduce((sum, p) => sum + weight(p), 0) : null;
  };
  const best = (at, of) => (some(at).length ? of(...some(at).map((p) => p[at])) : null);
  const last = points[points.length - 1];
  return [points[0][FIRST], last[LAST], mean(LOSS), best(LEAST, Math.min), best(MOST, Math.max), last[LR], mean(RATE)];
}

/* Round numbers that divide a range into about so many parts. */
function ticks(low, high, parts) {
  const rough = (high - low) / parts;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= 0.8 * rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12) + 1e-300; i++) found.push(i * step);
  return found;
}

const short = (v) => {
  if (v >= 1e6) return `${Number((v / 1e6).toPrecision(3))}M`;
  if (v >= 1e4) return `${Number((v / 1e3).toPrecision(3))}k`;
  return number(Number(v.toPrecision(6)));
};

/* A few wild values must not flatten the rest: the band may leave the picture, the line may not. */
function range(points, kind) {
  let low = Infinity, high = -Infinity;
  for (const p of points) {
    const v = p[kind.value];
    if (v === null) continue;
    low = Math.min(low, v);
    high = Math.max(high, v);
  }
  if (low > high) return null;
  if (kind.band) {
    const room = (high - low) * 0.15;
    for (const p of points) {
      if (p[kind.value] === null) continue;
      low = Math.min(low, Math.max(p[kind.band[0]], low - room));
      high = Math.max(high, Math.min(p[kind.band[1]], high + room));
    }
  }
  if (kind.zero) low = 0;
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [kind.zero ? 0 : low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

class Curve {
  constructor(figure, moved) {
    this.kind = KINDS[figure.dataset.curve];
    this.figure = figure;
    this.value = figure.querySelector(".value");
    this.plot = figure.querySelector(".plot");
    this.plot.append((this.picture = svg("svg", { "aria-hidden": "true" })));
    for (const [name, value] of [["tabindex", "0"], ["role", "slider"], ["aria-readonly", "true"],
      ["aria-label", `${this.kind.name}, read by step`], ["aria-valuemin", "0"]]) this.plot.setAttribute(name, value);
    this.points = [];
    this.moved = moved;
    this.plot.addEventListener("pointermove", (e) => this.point(e));
    this.plot.addEventListener("pointerdown", (e) => this.point(e));
    this.plot.addEventListener("pointerleave", () => moved(null));
    this.plot.addEventListener("blur", () => moved(null));
    this.plot.addEventListener("keydown", (e) => this.key(e));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  point(event) {
    if (!this.x) return;
    const at = event.clientX - this.plot.getBoundingClientRect().left;
    let best = null;
    this.points.forEach((p, i) => {
      const far = Math.abs(this.x(stepOf(p)) - at);
      if (best === null || far < best.far) best = { far, i };
    });
    this.moved(best && best.i);
  }

  key(event) {
    const last = this.points.length - 1, at = this.reading ?? last, page = Math.max(1, Math.round(last / 10));
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowDown: at - 1, ArrowUp: at + 1, PageDown: at - page,
      PageUp: at + page, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.moved(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.moved(Math.min(last, Math.max(0, to)));
  }

  set(points) {
    this.points = points;
    this.draw();
  }

  read(i) {
    this.reading = i;
    this.tell();
    this.mark();
  }

  /* The number beside the name: that of the reading line, or the newest one. */
  tell() {
    const p = this.points[this.reading ?? this.points.length - 1];
    if (!p) return setText(this.value, "–");
    const value = number(p[this.kind.value]);
    setText(this.value, this.reading === null || this.reading === undefined ? value : `${value} · ${steps(p)}`);
    this.plot.setAttribute("aria-valuemax", String(this.points[this.points.length - 1][LAST]));
    this.plot.setAttribute("aria-valuenow", String(p[LAST]));
    this.plot.setAttribute("aria-valuetext", `${value} at ${steps(p)}`);
  }

  draw() {
    const width = this.plot.clientWidth, height = this.plot.clientHeight;
    const values = range(this.points, this.kind);
    this.tell();
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    if (!values || width < 80) return this.picture.replaceChildren();
    const [low, high] = values;
    const from = this.points[0][FIRST], to = Math.max(this.points[this.points.length - 1][LAST], from + 1);
    this.x = (step) => LEFT + ((step - from) / (to - from)) * (width - LEFT - RIGHT);
    this.y = (v) => TOP + (1 - (v - low) / (high - low)) * (height - TOP - BOTTOM);
    this.cursor = svg("g", { class: "cursor" });
    this.picture.replaceChildren(...this.grid(low, high, from, to, width, height), ...this.band(low, high), this.line(), this.cursor);
    this.mark();
  }

  grid(low, high, from, to, width, height) {
    const parts = [];
    for (const v of ticks(low, high, height > 180 ? 5 : 3)) {
      const y = this.y(v).toFixed(1);
      parts.push(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
      parts.push(svg("text", { class: "tick", x: LEFT - 8, y, dy: "0.32em", "text-anchor": "end" }, short(v)));
    }
    for (const step of ticks(from, to, width > 420 ? 6 : 3)) {
      const x = this.x(step);
      const anchor = x > width - RIGHT - 20 ? "end" : x < LEFT + 8 ? "start" : "middle";
      if (Number.isInteger(step)) parts.push(svg("text", { class: "tick", x: x.toFixed(1), y: height - 6, "text-anchor": anchor }, short(step)));
    }
    return parts;
  }

  /* Stretches without a gap: some steps have no loss. */
  stretches() {
    const found = [[]];
    for (const p of this.points) {
      if (p[this.kind.value] === null) found.push([]);
      else found[found.length - 1].push(p);
    }
    return found.filter((s) => s.length > 0);
  }

  at(p, v) {
    return `${this.x(stepOf(p)).toFixed(1)} ${this.y(v).toFixed(1)}`;
  }

  line() {
    const path = this.stretches().map((s) => `M${s.map((p) => this.at(p, p[this.kind.value])).join("L")}${s.length === 1 ? "h.01" : ""}`);
    return svg("path", { class: "line", d: path.join("") });
  }

  band(low, high) {
    if (!this.kind.band) return [];
    const inside = (v) => Math.min(high, Math.max(low, v));
    const path = this.stretches().map((s) => {
      const over = s.map((p) => this.at(p, inside(p[MOST])));
      const under = s.map((p) => this.at(p, inside(p[LEAST]))).reverse();
      return `M${[...over, ...under].join("L")}Z`;
    });
    return [svg("path", { class: "band", d: path.join("") })];
  }

  mark() {
    const p = this.points[this.reading];
    if (!this.cursor) return;
    if (!p || p[this.kind.value] === null) return this.cursor.replaceChildren();
    const x = this.x(stepOf(p)), y = this.y(p[this.kind.value]);
    this.cursor.replaceChildren(svg("line", { x1: x, x2: x, y1: TOP, y2: this.plot.clientHeight - BOTTOM }), svg("circle", { cx: x, cy: y, r: 4 }));
  }
}

const ROWS = 24, POINTS = 180;

export class Curves {
  constructor() {
    this.section = document.getElementById("curves");
    this.table = document.getElementById("curves-table");
    this.points = [];
    const moved = (i) => this.curves.forEach((c) => c.read(i));
    this.curves = [...document.querySelectorAll(".curve")].map((figure) => new Curve(figure, moved));
    this.table.addEventListener("toggle", () => this.tabulate());
  }

  set(points) {
    this.points = points;
    show(this.section, points.length > 0);
    const few = thin(points, POINTS);
    this.curves.forEach((c) => c.set(few));
    this.tabulate();
  }

  /* The same for those who don't see pictures, and for numbers to copy. */
  tabulate() {
    if (!this.table.open) return;
    const rows = [];
    for (const p of thin(this.points, ROWS).reverse()) {
      const cell = (name, v) => el("td", { "data-name": name }, number(v));
      rows.push(el("tr", {}, el("th", { scope: "row" }, p[FIRST] === p[LAST] ? count(p[FIRST]) : `${count(p[FIRST])}–${count(p[LAST])}`),
        cell("Loss", p[LOSS]), cell("Least", p[LEAST]), cell("Greatest", p[MOST]), cell("Learning rate", p[LR]), cell("Images/s", p[RATE])));
    }
    this.table.querySelector("tbody").replaceChildren(...rows);
  }
}
