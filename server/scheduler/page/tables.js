/* Shards, workers, events and runs as tables. Rows stay where they are while their numbers change. */
import { bytes, clock, colour, count, duration, el, number, plural, setText, show } from "/text.js";

/* Rows by key, cells as the columns make them; more than `limit` rows only when asked for. */
class Table {
  constructor(id, columns, { limit = 50 } = {}) {
    this.table = document.getElementById(id);
    this.body = this.table.querySelector("tbody");
    this.none = document.getElementById(`no-${id}`);
    this.columns = columns;
    this.limit = limit;
    this.all = false;
    this.more = el("button", { type: "button", class: "all", hidden: "" });
    this.more.addEventListener("click", () => {
      this.all = !this.all;
      this.fill(this.rows);
    });
    this.table.after(this.more);
    this.names = [...this.table.querySelectorAll("thead th")].map((th) => th.textContent);
  }

  fill(rows) {
    this.rows = rows;
    show(this.table, rows.length > 0);
    show(this.none, rows.length === 0);
    show(this.more, rows.length > this.limit);
    setText(this.more, this.all ? `Show ${this.limit} only` : `Show all ${count(rows.length)}`);
    const known = new Map([...this.body.children].map((tr) => [tr.dataset.key, tr]));
    const shown = (this.all ? rows : rows.slice(0, this.limit)).map(({ key, cells }) => this.row(known.get(String(key)) ?? this.fresh(key), cells));
    shown.forEach((tr, i) => {
      if (this.body.children[i] !== tr) this.body.insertBefore(tr, this.body.children[i] ?? null);
    });
    while (this.body.childElementCount > shown.length) this.body.lastChild.remove();
  }

  fresh(key) {
    const cells = this.columns.map((type, i) => el(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : null, class: type || null, "data-name": this.names[i] }));
    return el("tr", { "data-key": key }, ...cells);
  }

  /* A cell is a text, or {swatch, tone, text, small, mono, part}. */
  row(tr, cells) {
    cells.forEach((cell, i) => {
      const said = JSON.stringify(cell);
      if (tr.children[i].dataset.said === said) return;
      tr.children[i].dataset.said = said;
      tr.children[i].replaceChildren(...(typeof cell === "object" ? parts(cell) : [cell]));
    });
    return tr;
  }
}

function parts({ swatch, tone, text, small, mono, part }) {
  const main = el("span", { class: mono ? "main mono" : "main" });
  if (swatch !== undefined) main.append(el("span", { class: `swatch ${colour(swatch)}`, "aria-hidden": "true" }));
  if (tone) main.append(el("span", { class: "dot", "data-tone": tone, "aria-hidden": "true" }));
  main.append(text);
  const all = [main];
  if (part !== undefined) {
    const fill = el("span", { class: "fill" });
    fill.style.width = `${Math.min(100, 100 * part).toFixed(1)}%`;
    all.push(el("span", { class: "track thin", "aria-hidden": "true" }, fill));
  }
  if (small) all.push(el("span", { class: "small" }, small));
  return all;
}

/* ---- shards */

function shardState(h, runs) {
  const notes = [];
  let word = h.state, tone = { ready: "good", recovering: "busy", gone: "bad" }[h.state] ?? "quiet";
  if (h.state === "ready" && h.leaving) [word, tone] = ["leaving", "busy"];
  else if (h.state === "ready" && runs && !h.member) [word, tone] = ["spare", "quiet"];
  if (h.recovery) {
    const left = h.recovery.eta_s > 0 ? `, ${duration(h.recovery.eta_s)} left` : "";
    notes.push(`step ${count(h.recovery.step)} of ${count(h.recovery.to_step)}${left}`);
  }
  if (h.missing_s > 0) notes.push(`missing for ${duration(h.missing_s)}`);
  if (h.loss) notes.push(h.loss);
  if (h.disk_error) notes.push(`disk: ${h.disk_error}`);
  if (h.disk_error && tone === "good") tone = "bad";
  for (const m of h.mirrors) {
    if (m.complete) notes.push(`mirrored by shard ${m.shard}`);
    else notes.push(`mirror on shard ${m.shard}: ${count(m.copied)} of ${plural(m.blocks || h.blocks + h.dense_blocks, "block")}${m.reason ? `: ${m.reason}` : ""}`);
  }
  return { tone, text: word, small: notes.join("; ") };
}

function memory(h) {
  if (!h.memory_limit) return "–";
  return { text: `${bytes(h.memory_bytes)} of ${bytes(h.memory_limit)}`, part: h.memory_bytes / h.memory_limit };
}

function shardRow(h, runs) {
  const dense = h.dense_blocks ? `and ${count(h.dense_blocks)} of the backbone` : "";
  return {
    key: h.id,
    cells: [{ swatch: h.blocks + h.dense_blocks ? h.id : 0, text: String(h.id), small: h.address }, shardState(h, runs), { text: count(h.blocks), small: dense },
      count(h.classes), memory(h), count(h.step), h.step_ms > 0 ? `${number(Number(h.step_ms.toPrecision(3)))} ms` : "–", bytes(h.log_bytes)],
  };
}

/* ---- the others */

const workerRow = (w) => ({
  key: w.id,
  cells: [{ text: w.name, mono: true }, { tone: w.state === "alive" ? "good" : "bad", text: w.state }, count(w.lanes), count(w.tickets), count(w.micro_batches), w.memory_bytes ? bytes(w.memory_bytes) : "–"],
});

const eventRow = (e) => ({ key: e.id, cells: [clock(e.time_ms), e.text, { text: e.who || "–", mono: true }] });

export const TONES = { running: "good", finished: "done", loading: "busy", paused: "waits", held: "waits", blocked: "bad", failed: "bad", stopped: "quiet", idle: "quiet" };

function runRow(r) {
  const took = r.last_ms > r.first_ms ? duration((r.last_ms - r.first_ms) / 1000) : "–";
  return {
    key: r.run_id,
    cells: [{ text: r.run, small: `run ${r.run_id}` }, { tone: TONES[r.state] ?? "quiet", text: r.state, small: r.reason },
      `${count(r.step)} of ${count(r.steps)}`, number(r.loss), r.first_ms ? clock(r.first_ms, false) : "–", took],
  };
}

export class Tables {
  constructor() {
    this.shards = new Table("shards", ["", "", "number", "number", "memory", "number", "number", "number"]);
    this.workers = new Table("workers", ["", "", "number", "number", "number", "number"]);
    this.events = new Table("events", ["when", "what", "who"], { limit: 12 });
    this.runs = new Table("runs", ["", "", "number", "number", "", "number"], { limit: 5 });
  }

  status(s) {
    const runs = s.run_id !== 0 && s.state !== "idle";
    this.shards.fill(s.shards.map((h) => shardRow(h, runs)));
    this.workers.fill(s.workers.map(workerRow));
  }

  happened(events) {
    this.events.fill([...events].reverse().map(eventRow));
  }

  /* The run that is there has newer numbers than the list. */
  list(runs, s) {
    const fresh = (r) => ({ ...r, state: s.state, reason: r.reason && s.reason, step: s.step, loss: s.loss, last_ms: r.first_ms && s.state === "running" ? Date.now() : r.last_ms });
    this.runs.fill(runs.map((r) => runRow(s && r.run_id === s.run_id ? fresh(r) : r)));
  }
}
