/* The block map as a picture: a cell for each block (or a few of a large map), in the colour of its shard; a cell that
 * moves has both colours. What the picture says is also in words: on the picture, in the legend, in the list of moves. */
import { bytes, colour, count, duration, el, plural, setText, show } from "/text.js";

/* "shard 1 has 12 of 20" for each owner. */
function summary(what, part) {
  const owned = new Map();
  for (const owner of part.owners) owned.set(owner, (owned.get(owner) ?? 0) + 1);
  const parts = [...owned].sort((a, b) => a[0] - b[0]).map(([shard, n]) => `shard ${shard} has ${count(n)}`);
  return `${what}: ${plural(part.owners.length, part.per_cell > 1 ? "group" : "block")}; ${parts.join(", ")}`;
}

class Picture {
  constructor(id, name, read) {
    this.root = document.getElementById(id);
    this.aside = this.root.querySelector(".aside");
    this.cells = this.root.querySelector(".cells");
    this.name = name;
    this.read = read;
    this.cells.addEventListener("pointerover", (e) => this.over(e));
    this.cells.addEventListener("pointerdown", (e) => this.over(e));
    this.cells.addEventListener("pointerleave", () => read(null));
  }

  over(event) {
    const i = [...this.cells.children].indexOf(event.target);
    if (i < 0) return;
    const first = i * this.part.per_cell, last = Math.min(first + this.part.per_cell, this.part.blocks) - 1;
    const which = first === last ? `block ${count(first)}` : `blocks ${count(first)}–${count(last)}`;
    const move = this.moving.get(i);
    this.read(`${this.name}, ${which}: shard ${this.part.owners[i]}${move ? (move.to ? `, moves to shard ${move.to}` : ", is being restored") : ""}`);
  }

  draw(part, moves, cellsOf) {
    this.part = part;
    this.moving = new Map();
    for (const move of [...moves].reverse()) for (const i of cellsOf(move)) this.moving.set(i, move);
    show(this.root, part.owners.length > 0);
    setText(this.aside, part.per_cell > 1 ? `${plural(part.blocks, "block")}, ${count(part.per_cell)} to a cell` : plural(part.blocks, "block"));
    const moving = this.moving.size ? `; ${count(this.moving.size)} of them move` : "";
    this.cells.setAttribute("aria-label", summary(this.name, part) + moving);
    while (this.cells.childElementCount > part.owners.length) this.cells.lastChild.remove();
    while (this.cells.childElementCount < part.owners.length) this.cells.append(document.createElement("i"));
    this.cells.dataset.size = part.owners.length > 400 ? "small" : part.owners.length > 80 ? "medium" : "large";
    part.owners.forEach((owner, i) => {
      const cell = this.cells.children[i], move = this.moving.get(i);
      const name = move ? `${colour(owner)} moving to-${colour(move.to)}` : colour(owner);
      if (cell.className !== name) cell.className = name;
      if (cell.dataset.shard !== String(owner)) cell.dataset.shard = owner;
    });
  }
}

export class Blocks {
  constructor() {
    this.section = document.getElementById("blocks");
    this.legend = document.getElementById("legend");
    this.readout = document.getElementById("readout");
    this.hint = this.readout.textContent;
    const read = (text) => setText(this.readout, text ?? this.hint);
    this.classes = new Picture("class-map", "Class layer", read);
    this.dense = new Picture("dense-map", "Backbone", read);
    this.chosen = null;
    this.legend.addEventListener("click", (e) => {
      const button = e.target.closest("button");
      if (button) this.choose(this.chosen === button.dataset.shard ? null : button.dataset.shard);
    });
  }

  /* One shard's blocks, the others faint. */
  choose(shard) {
    this.chosen = shard;
    for (const b of this.legend.children) b.setAttribute("aria-pressed", String(b.dataset.shard === shard));
    this.section.classList.toggle("one", shard !== null);
    for (const cell of this.section.querySelectorAll(".cells i")) cell.classList.toggle("chosen", cell.dataset.shard === shard);
  }

  draw(blocks) {
    const there = Boolean(blocks && blocks.run_id && blocks.class);
    show(this.section, there);
    if (!there) return;
    this.classes.draw(blocks.class, blocks.moves, (m) => m.class_cells);
    this.dense.draw(blocks.dense, blocks.moves, (m) => m.dense_cells);
    setText(document.getElementById("map-version"), `version ${count(blocks.map_version)}`);
  }

  /* The legend, from the shards of the status: those with blocks. */
  name(shards) {
    const members = shards.filter((s) => s.member && s.blocks + s.dense_blocks > 0);
    const ids = members.map((s) => s.id).join(" ");
    if (ids !== this.ids) {
      this.ids = ids;
      this.legend.replaceChildren(...members.map((s) => el("button", { type: "button", "data-shard": s.id, "aria-pressed": "false" },
        el("span", { class: `swatch ${colour(s.id)}`, "aria-hidden": "true" }), `Shard ${s.id}`, el("span", { class: "aside" }))));
    }
    members.forEach((s, i) => setText(this.legend.children[i].lastChild, count(s.blocks + s.dense_blocks)));
    this.choose(members.some((s) => String(s.id) === this.chosen) ? this.chosen : null);
  }

  /* Moves at work and those that wait. */
  list(status) {
    const list = document.getElementById("moves"), goal = document.getElementById("goal");
    show(document.getElementById("no-moves"), status.moves.length === 0 && !status.goal);
    show(goal, Boolean(status.goal));
    if (status.goal) {
      const far = status.goal_bytes ? ` (${bytes(status.goal_moved)} of ${bytes(status.goal_bytes)} have moved)` : "";
      setText(goal, `Becomes: ${status.goal}${far}`);
    }
    const known = new Map([...list.children].map((item) => [item.dataset.move, item]));
    list.replaceChildren(...status.moves.map((m) => fillMove(known.get(String(m.move)) ?? newMove(m), m)));
  }
}

function newMove(m) {
  const line = el("p", { class: "way" }, el("span", { class: `swatch ${colour(m.from)}`, "aria-hidden": "true" }), `Shard ${m.from} `,
    el("span", { class: "arrow", "aria-label": "to" }, "→"), el("span", { class: `swatch ${colour(m.to)}`, "aria-hidden": "true" }), `Shard ${m.to}`,
    el("span", { class: "aside" }));
  const track = el("div", { class: "track", role: "progressbar", "aria-label": `Move ${m.move}`, "aria-valuemin": "0", "aria-valuemax": "100" },
    el("span", { class: `fill ${colour(m.to)}` }));
  return el("li", { "data-move": m.move }, line, track, el("p", { class: "numbers" }));
}

function fillMove(item, m) {
  const [line, track, numbers] = item.children;
  const done = m.bytes ? Math.min(100, (100 * m.copied) / m.bytes) : 0;
  setText(line.lastChild, `${plural(m.blocks, "block")}, ${m.state}`);
  track.setAttribute("aria-valuenow", String(Math.round(done)));
  track.firstChild.style.width = `${done}%`;
  const parts = [`${bytes(m.copied)} of ${bytes(m.bytes)}`];
  if (m.bytes_per_s > 0) parts.push(`${bytes(m.bytes_per_s)}/s`);
  if (m.eta_s > 0) parts.push(`${duration(m.eta_s)} left`);
  if (m.reason && !m.reason.endsWith("; ask again")) parts.push(m.reason); // else it goes on as it should
  setText(numbers, parts.join(" · "));
  return item;
}
