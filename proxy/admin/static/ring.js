// The ring as a circle. Positions grow clockwise from twelve o'clock.

import { colorOf } from "./colors.js";
import { shape } from "./dom.js";

const RADIUS = 172;
const KEY_RADIUS = 205;
// More arcs than this are less than a pixel each: then the circle shows who owns each of so many equal pieces.
const MAX_ARCS = 2400;

const angleOf = (share) => share * 2 * Math.PI;
const x = (share, radius) => (radius * Math.sin(angleOf(share))).toFixed(2);
const y = (share, radius) => (-radius * Math.cos(angleOf(share))).toFixed(2);

/** The path of an arc from one share of the circle to another, clockwise; equal ones are the whole circle. */
function arcPath(from, to, radius) {
  const length = to > from ? to - from : to - from + 1;
  if (length > 0.999) return `${arcPath(from, from + 0.5, radius)}${arcPath(from + 0.5, from + 1, radius)}`;
  const large = length > 0.5 ? 1 : 0;
  return `M${x(from, radius)} ${y(from, radius)}A${radius} ${radius} 0 ${large} 1 ${x(to, radius)} ${y(to, radius)}`;
}

/** Who owns which stretch: `ends` in ascending order (shares of the circle), `owners` (indexes) beside them. */
function stretchesOf(ring) {
  const arcs = ring.members.flatMap((member, owner) => member.arcs.map(([, end]) => ({ end, owner })));
  arcs.sort((one, other) => one.end - other.end);
  return { ends: arcs.map((arc) => arc.end / ring.ring_size), owners: arcs.map((arc) => arc.owner) };
}

/** The index of the stretch that holds a position: the first that ends at or after it, past the last the first. */
function stretchAt(ends, position) {
  let low = 0;
  let high = ends.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] < position) low = middle + 1;
    else high = middle;
  }
  return low % ends.length;
}

/** The path of each owner. */
function pathsOf({ ends, owners }, members) {
  const paths = new Array(members).fill("");
  if (ends.length > MAX_ARCS) return sampledPaths(ends, owners, paths);
  ends.forEach((end, index) => {
    const start = ends[(index + ends.length - 1) % ends.length];
    paths[owners[index]] += arcPath(start, end, RADIUS);
  });
  return paths;
}

function sampledPaths(ends, owners, paths) {
  let from = 0;
  for (let piece = 0; piece < MAX_ARCS; piece += 1) {
    const owner = owners[stretchAt(ends, (piece + 0.5) / MAX_ARCS)];
    const next = piece + 1 < MAX_ARCS ? owners[stretchAt(ends, (piece + 1.5) / MAX_ARCS)] : -1;
    if (next === owner) continue;
    paths[owner] += arcPath(from, (piece + 1) / MAX_ARCS, RADIUS);
    from = (piece + 1) / MAX_ARCS;
  }
  return paths;
}

function hatchPattern() {
  const pattern = shape("pattern", {
    id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)",
  });
  pattern.append(shape("rect", { class: "hatch-line", width: 3.5, height: 6 }));
  return shape("defs", {}, pattern);
}

export class Ring {
  #svg;
  #arcs = new Map(); // id -> path element
  #members = [];
  #stretches = { ends: [], owners: [] };
  #unavailable = "";
  #hatch = shape("path", { class: "hatch", stroke: "url(#hatch)" });
  #all = shape("g", { class: "all" });
  #focus = shape("g", { class: "focus" });
  #marks = shape("g", { class: "marks" });
  #focused = null;

  /** `onFocus(id or null)`: a server is pointed at, or none any more. `group`: what has the keyboard's focus. */
  constructor(svg, group, onFocus) {
    this.#svg = svg;
    svg.append(hatchPattern(), this.#all, this.#focus, this.#marks);
    svg.addEventListener("pointermove", (event) => this.#point(this.#at(event), onFocus));
    svg.addEventListener("pointerleave", () => this.#point(null, onFocus));
    group.addEventListener("keydown", (event) => this.#key(event, onFocus));
    group.addEventListener("blur", () => onFocus(null));
  }

  /** Draw another ring (an answer of /api/ring). */
  draw(ring) {
    this.#members = ring.members.map((member) => member.id);
    this.#stretches = stretchesOf(ring);
    this.#arcs.clear();
    pathsOf(this.#stretches, ring.members.length).forEach((path, index) => {
      const id = this.#members[index];
      const arc = shape("path", { class: "arc", d: path, "data-id": id });
      arc.style.stroke = colorOf(id);
      this.#arcs.set(id, arc);
    });
    this.#unavailable = "";
    this.#hatch.setAttribute("d", "");
    this.#all.replaceChildren(...this.#arcs.values(), this.#hatch);
    this.focus(this.#focused);
  }

  /** Hatch the arcs of servers that are not available: all by one path, as there may be a thousand. */
  states(endpoints) {
    const unavailable = endpoints.filter((each) => !each.available && this.#arcs.has(each.id));
    const drawn = unavailable.map((each) => each.id).join("\n");
    if (drawn === this.#unavailable) return;
    this.#unavailable = drawn;
    this.#hatch.setAttribute("d", unavailable.map((each) => this.#arcs.get(each.id).getAttribute("d")).join(""));
  }

  /** Let the arcs of a server stand out; null: of none. The others are dimmed as one, which costs one layer. */
  focus(id) {
    this.#focused = id;
    const arc = this.#arcs.get(id);
    this.#all.classList.toggle("dimmed", Boolean(arc));
    if (!arc) return this.#focus.replaceChildren();
    const copy = arc.cloneNode();
    copy.removeAttribute("data-id");
    const hatch = this.#unavailable.split("\n").includes(id) ? [shape("path", { class: "hatch", stroke: "url(#hatch)", d: arc.getAttribute("d") })] : [];
    return this.#focus.replaceChildren(copy, ...hatch);
  }

  /** Show where a key is, and the way from it to the servers it would be offered to; null: nothing. */
  mark(explanation) {
    this.#marks.replaceChildren();
    if (!explanation) return;
    const { position, candidates } = explanation;
    const last = candidates.findIndex((each) => each.chosen);
    const walked = candidates.slice(0, last < 0 ? candidates.length : last + 1);
    const stops = walked.map(({ id }) => ({ id, at: this.#firstStretch(id, position) })).filter(({ at }) => at !== null);
    const nodes = [];
    const end = stops.at(-1)?.at ?? position;
    // A way too short to be seen is drawn as a dot of its own length at least.
    nodes.push(shape("path", { class: "way", d: arcPath(position, end === position ? position + 0.001 : end, KEY_RADIUS) }));
    for (const { id, at } of stops) {
      const stop = shape("line", { class: "stop", x1: x(at, 158), y1: y(at, 158), x2: x(at, KEY_RADIUS), y2: y(at, KEY_RADIUS), "data-id": id });
      stop.style.stroke = colorOf(id);
      nodes.push(stop);
    }
    nodes.push(shape("circle", { class: "key-point", r: 6, cx: x(position, KEY_RADIUS), cy: y(position, KEY_RADIUS) }));
    this.#marks.append(...nodes);
  }

  /** The middle of the first stretch of a server at or after a position. */
  #firstStretch(id, position) {
    const { ends, owners } = this.#stretches;
    const owner = this.#members.indexOf(id);
    const first = stretchAt(ends, position);
    for (let step = 0; step < ends.length; step += 1) {
      const index = (first + step) % ends.length;
      if (owners[index] !== owner) continue;
      if (step === 0) return ends[index]; // the key lies within it: its end is the point it belongs to
      const start = ends[(index + ends.length - 1) % ends.length];
      const length = (ends[index] - start + 1) % 1 || 1;
      return (start + length / 2) % 1;
    }
    return null;
  }

  #point(id, onFocus) {
    if (id !== this.#focused) onFocus(id);
  }

  #at(event) {
    const box = this.#svg.getBoundingClientRect();
    const across = ((event.clientX - box.left) / box.width - 0.5) * 440;
    const down = ((event.clientY - box.top) / box.height - 0.5) * 440;
    const radius = Math.hypot(across, down);
    const { ends, owners } = this.#stretches;
    if (!ends.length || Math.abs(radius - RADIUS) > 24) return null;
    const share = (Math.atan2(across, -down) / (2 * Math.PI) + 1) % 1;
    return this.#members[owners[stretchAt(ends, share)]];
  }

  #key(event, onFocus) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") onFocus(null);
    if (!step || !this.#members.length) return;
    event.preventDefault();
    const now = this.#members.indexOf(this.#focused);
    const next = now < 0 ? (step > 0 ? 0 : -1) : now + step;
    onFocus(this.#members.at(next % this.#members.length));
  }
}
