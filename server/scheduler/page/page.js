/* The status page: asks the scheduler (feed.js) and shows what it says. It changes nothing. */
import { Blocks } from "/blocks.js";
import { Curves } from "/curves.js";
import { Items, Refused, forEver, get, getText } from "/feed.js";
import { Run } from "/run.js";
import { Tables } from "/tables.js";

const RUNS_EACH = 30; // rounds
const EVENTS_KEPT = 200;

const run = new Run(), curves = new Curves(), blocks = new Blocks(), tables = new Tables();
const series = new Items("/api/series", {
  of: (a) => a.points, key: (a) => `${a.run_id} ${a.version}`, number: (p) => p[1], same: (p) => p[0],
});
const events = new Items("/api/events", { of: (a) => a.events, key: (a) => a.incarnation, number: (e) => e.id, same: (e) => e.id });
let runs = [], runsOf = null, mapOf = null, rounds = 0;

async function showBlocks(status) {
  const key = [status.incarnation, status.run_id, status.state === "idle", status.map_version, ...status.moves.map((m) => m.move)].join(" ");
  if (key !== mapOf || rounds % 5 === 0) blocks.draw(await get("/api/blocks"));
  mapOf = key;
  blocks.name(status.shards);
  blocks.list(status);
}

async function showRuns(status) {
  const key = `${status.incarnation} ${status.run_id} ${status.state}`;
  if (key !== runsOf || rounds % RUNS_EACH === 0) runs = (await get("/api/runs")).runs;
  runsOf = key;
  tables.list(runs, status);
}

async function showEvents() {
  if (!(await events.fetch())) return;
  events.items.splice(0, events.items.length - EVENTS_KEPT);
  tables.happened(events.items);
}

async function round() {
  try {
    const status = await get("/api/status");
    run.show(status);
    tables.status(status);
    if (await series.fetch()) curves.set(series.items);
    await showBlocks(status);
    await showEvents();
    await showRuns(status);
    rounds++;
    return true;
  } catch (error) {
    if (error instanceof Refused && error.status === 503) run.standsBy(await getText("/readyz").catch(() => error.text));
    else run.unreachable();
    return false;
  }
}

forEver(round);
