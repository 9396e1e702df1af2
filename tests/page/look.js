/* What a test asks a page about how it looks; each gives a list of complaints. */
"use strict";

const shown = (node) => node.checkVisibility({ opacityProperty: true, visibilityProperty: true });
const unseen = (node) => Boolean(node.closest(".unseen, .skip:not(:focus), thead"));
const name = (node) => `${node.tagName.toLowerCase()}${node.id ? `#${node.id}` : ""}.${node.getAttribute("class") ?? ""} "${node.textContent.trim().slice(0, 40)}"`;

function rgba(text) {
  const parts = /^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/.exec(text);
  if (!parts) throw new Error(`which colour is ${text}?`);
  return [Number(parts[1]), Number(parts[2]), Number(parts[3]), parts[4] === undefined ? 1 : Number(parts[4])];
}

const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);

function behind(node) {
  const layers = [];
  for (let at = node; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
}

const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};

function contrast(a, b) {
  const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
}

/* Every text that is seen, whatever its size, against what is behind it. */
function faint(least) {
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !shown(node) || unseen(node) || node.closest("noscript, script")) continue;
    seen++;
    const style = getComputedStyle(node), back = behind(node);
    const fore = rgba(node instanceof SVGElement ? style.fill : style.color);
    for (let at = node; at; at = at.parentElement) fore[3] *= Number(getComputedStyle(at).opacity);
    const ratio = contrast(over(fore, back), back);
    if (ratio < least) found.push(`${name(node)}: ${ratio.toFixed(2)}`);
  }
  return seen < 5 ? [`only ${seen} texts`] : found;
}

/* Whatever is wider than the window. */
function wide() {
  const width = document.documentElement.clientWidth;
  const found = [...document.querySelectorAll("body *")].filter((n) => shown(n) && !unseen(n) && n.getBoundingClientRect().right > width + 0.5);
  return document.documentElement.scrollWidth > width || found.length ? [`${document.documentElement.scrollWidth} of ${width}`, ...found.slice(0, 5).map(name)] : [];
}

const FOCUSABLE = 'a[href], button, input, summary, [tabindex="0"]';

/* What Tab must reach: of a group of radio buttons one. */
function reachable() {
  const now = (n) => n.checkVisibility({ visibilityProperty: true }) && (n.type !== "radio" || n.checked);
  return [...document.querySelectorAll(FOCUSABLE)].filter(now).length;
}

function focused() {
  const node = document.activeElement;
  if (node === document.body || node === document.documentElement) return null;
  const ring = [node, node.nextElementSibling].some((n) => n && getComputedStyle(n).outlineStyle !== "none" && parseFloat(getComputedStyle(n).outlineWidth) >= 2);
  return { name: name(node), ring, place: [...document.querySelectorAll("*")].indexOf(node) };
}

/* Landmarks, headings, captions, names. */
function structure() {
  const found = [], all = (q) => [...document.querySelectorAll(q)];
  for (const one of ["body > header", "main", "body > footer", "h1", "html[lang]", "title"]) if (all(one).length !== 1) found.push(`${all(one).length} x ${one}`);
  let level = 0;
  for (const h of all("h1, h2, h3").filter(shown)) {
    const next = Number(h.tagName[1]);
    if (next > level + 1) found.push(`${name(h)} follows a heading of level ${level}`);
    level = next;
    if (!h.textContent.trim()) found.push(`${name(h)} is empty`);
  }
  for (const t of all("table")) if (!t.caption?.textContent.trim() || t.querySelectorAll("thead th[scope=col]").length === 0) found.push(`${name(t)} has no caption or no heads`);
  for (const s of all("main section")) if (!document.getElementById(s.getAttribute("aria-labelledby"))) found.push(`${name(s)} has no name`);
  for (const p of all("[role=img]").filter(shown)) if (!p.getAttribute("aria-label")) found.push(`${name(p)} is a picture without words`);
  for (const i of all("img")) if (!i.hasAttribute("alt")) found.push(`${name(i)} has no alt`);
  if (all("[aria-live], [role=status], [role=alert], output").length !== 1) found.push("more or less than one live region");
  return found;
}
