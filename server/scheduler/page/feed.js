/* What the scheduler says, asked for at a bounded rate and only while somebody looks. */

const EVERY_MS = 2000;
const SLOWEST_MS = 15000;
const PATIENCE_MS = 8000;

/* The status of an answer that is not the one asked for. */
export class Refused extends Error {
  constructor(path, status, text) {
    super(`${path}: ${status}`);
    this.status = status;
    this.text = text;
  }
}

export async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!answer.ok) throw new Refused(path, answer.status, (await answer.text()).trim());
  return answer.json();
}

export async function getText(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  return (await answer.text()).trim();
}

const seen = () =>
  new Promise((resolve) => {
    if (!document.hidden) return resolve();
    document.addEventListener("visibilitychange", function look() {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    });
  });

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/* Asks for ever: one round at a time, slower while nobody answers. round() says whether it went well. */
export async function forEver(round) {
  let wait = EVERY_MS;
  for (;;) {
    await seen();
    wait = (await round()) ? EVERY_MS : Math.min(wait * 1.5, SLOWEST_MS);
    await pause(wait);
  }
}

/* Items with ascending numbers, of which only new ones are fetched. A list with another key is another list. */
export class Items {
  constructor(path, { of, key, number, same }) {
    this.path = path;
    this.of = of; // (answer) => its items
    this.key = key; // (answer) => which list it is
    this.number = number; // (item) => its number
    this.same = same; // (item) => what tells it from others: a newer one takes its place
    this.items = [];
    this.known = null;
  }

  async fetch() {
    const last = this.items.length ? this.number(this.items[this.items.length - 1]) : 0;
    let answer = await get(last ? `${this.path}?since=${last}` : this.path);
    if (last && this.key(answer) !== this.known) answer = await get(this.path);
    const another = this.key(answer) !== this.known;
    if (another) this.items = [];
    this.known = this.key(answer);
    const fresh = this.of(answer);
    if (fresh.length && this.items.length) {
      const first = this.same(fresh[0]);
      while (this.items.length && this.same(this.items[this.items.length - 1]) >= first) this.items.pop();
    }
    this.items.push(...fresh);
    this.answer = answer;
    return another || fresh.length > 0;
  }
}
