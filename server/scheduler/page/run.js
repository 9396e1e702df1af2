/* The head of the page: which run, in which state and why, how far, until when. */
import { TONES } from "/tables.js";
import { clock, count, duration, el, number, plural, setText, show } from "/text.js";

const STILL_MS = 5000; // a step that takes longer, and three times what steps took, is waited for

/* How long steps take here, and since when none came. */
class Pace {
  see(status, now) {
    const key = `${status.run_id} ${status.incarnation}`;
    if (key !== this.key || status.step < this.step) {
      Object.assign(this, { key, step: status.step, since: now, took: 0 });
    } else if (status.step > this.step) {
      this.took = (now - this.since) / (status.step - this.step);
      this.step = status.step;
      this.since = now;
    }
  }

  still(now) {
    return now - this.since > Math.max(STILL_MS, 3 * this.took);
  }
}

const WORDS = { idle: "Idle", loading: "Loading", running: "Running", paused: "Paused", held: "Held", blocked: "Blocked", finished: "Finished", failed: "Failed", stopped: "Stopped" };

const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) : "");

export class Run {
  constructor() {
    const at = (id) => document.getElementById(id);
    Object.assign(this, { name: at("run-name"), state: at("state"), word: at("state-word"), reason: at("reason"), progress: at("progress"),
      track: at("track"), steps: at("steps"), eta: at("eta"), notes: at("notes"), about: at("about") });
    this.pace = new Pace();
    this.heard = null;
  }

  say(word, tone, reason) {
    setText(this.word, word);
    this.state.dataset.tone = tone;
    setText(this.reason, reason);
    show(this.reason, Boolean(reason));
    document.body.classList.toggle("stale", tone === "lost");
  }

  /* A run that goes on always waits for something: that is worth a word when it does so for long. */
  show(s) {
    const now = Date.now();
    this.heard = now;
    this.pace.see(s, now);
    const there = s.run_id !== 0 && s.state !== "idle";
    const waits = s.state === "running" && s.reason && (s.images_per_s === 0 ? s.step > 0 || this.pace.still(now) : this.pace.still(now));
    setText(this.name, s.run_id ? s.run : "No run yet");
    if (!s.run_id) this.say("Idle", "quiet", s.reason || "shardfc create starts one; shards and workers may come before or after it.");
    else if (waits) this.say("Waiting", "waits", sentence(s.reason));
    else this.say(WORDS[s.state] ?? s.state, TONES[s.state] ?? "quiet", s.state === "running" ? "" : sentence(s.reason));
    this.far(s, there, waits, now);
    this.tell(s, there);
    const part = there && s.steps ? `${Math.floor((100 * s.step) / s.steps)} % · ` : "";
    document.title = `${part}${this.word.textContent} · ${s.run_id ? s.run : "no run"} · ShardFC`;
    setText(this.about, `ShardFC ${s.version} · incarnation ${count(s.incarnation)} of this scheduler · as of ${clock(now)}`);
  }

  far(s, there, waits, now) {
    show(this.progress, there && s.steps > 0);
    if (!there || !s.steps) return;
    const part = (100 * s.step) / s.steps;
    this.track.setAttribute("aria-valuenow", String(Math.floor(part)));
    this.track.firstElementChild.style.width = `${part}%`;
    setText(this.steps, `Step ${count(s.step)} of ${count(s.steps)}${s.epoch > 0 ? ` · epoch ${s.epoch.toFixed(2)}` : ""}`);
    let ends = "";
    if (s.state === "running" && !waits && s.eta_s > 0) ends = `${duration(s.eta_s)} left, until ${clock(now + 1000 * s.eta_s, false)}`;
    else if (s.images_per_s > 0 && (s.state === "finished" || s.state === "failed")) ends = `${count(s.images_per_s)} images/s on average`;
    setText(this.eta, ends);
  }

  /* What is not as usual, or was chosen. */
  tell(s, there) {
    const notes = [];
    if (there) {
      const members = s.shards.filter((h) => h.member);
      notes.push(`${count(s.classes)} classes`);
      if (s.grows) notes.push(s.grows);
      if (s.durable_every > 1) notes.push(`durable up to step ${count(s.durable_step)}`);
      if (s.mirrors) notes.push(`${members.filter((h) => h.mirrors.some((m) => m.complete)).length} of ${plural(members.length, "shard")} can be lost`);
      if (s.rewind_window) notes.push(`can be rewound to step ${count(s.oldest_step)} and later ones`);
      if (s.skipped_steps) notes.push(`${plural(s.skipped_steps, "step")} skipped as not finite`);
      for (const c of s.lr_changes) notes.push(`learning rate ${c.lr === null ? "of the configuration" : number(c.lr)} from step ${count(c.from_step)}`);
    }
    show(this.notes, notes.length > 0);
    const said = notes.join("\n");
    if (said !== this.said) this.notes.replaceChildren(...notes.map((text) => el("li", {}, text)));
    this.said = said;
  }

  standsBy(why) {
    this.heard = Date.now();
    setText(this.name, "Scheduler");
    this.say("Standing by", "quiet", sentence(why));
    show(this.progress, false);
    document.title = "Standing by · ShardFC";
  }

  unreachable() {
    const since = this.heard ? ` What you see is from ${clock(this.heard)}, ${duration((Date.now() - this.heard) / 1000)} ago.` : "";
    if (!this.heard) setText(this.name, "ShardFC");
    this.say("No answer", "lost", `The scheduler at ${location.host} does not answer.${since} This page goes on asking.`);
    document.title = "No answer · ShardFC";
  }
}
