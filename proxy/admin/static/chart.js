// A line over the last minutes, with its highest value written beside it.

import { setText, shape } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 56;
const TOP = 4;
// Milliseconds from the left edge to the right: what there is, within these.
const LEAST_SPAN = 60_000;
const MOST_SPAN = 300_000;
const GAP = 30_000; // milliseconds without a value that break the line

/** A scale's end that leaves a little room and is not nothing. */
const roomFor = (highest, least) => Math.max(highest * 1.15, least);

export class LineChart {
  #value;
  #line;
  #area;
  #peak;
  #format;
  #least;

  /** `figure`: holds `.value` and `svg.line`. `least`: the least end of the scale, so that noise about zero stays flat. */
  constructor(figure, format, least) {
    this.#format = format;
    this.#least = least;
    this.#value = figure.querySelector(".value");
    const svg = figure.querySelector("svg");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    this.#area = shape("path", { class: "area" });
    this.#line = shape("path", { class: "stroke", "vector-effect": "non-scaling-stroke" });
    svg.append(shape("line", { class: "floor", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5, "vector-effect": "non-scaling-stroke" }), this.#area, this.#line);
    this.#peak = figure.appendChild(document.createElement("small"));
    this.#peak.className = "peak";
  }

  /** `now`: the value to write large. `points`: [[milliseconds, value or null], ...], oldest first. */
  draw(now, points) {
    setText(this.#value, this.#format(now));
    const latest = points.at(-1)?.[0] ?? 0;
    const span = Math.min(Math.max(latest - (points[0]?.[0] ?? latest), LEAST_SPAN), MOST_SPAN);
    const valued = points.filter(([, value]) => value !== null && value !== undefined);
    const highest = Math.max(0, ...valued.map(([, value]) => value));
    setText(this.#peak, valued.length > 1 ? `peak ${this.#format(highest)} in ${Math.round(span / 60_000)} min` : "");
    const runs = this.#runs(valued, latest, span, roomFor(highest, this.#least));
    this.#line.setAttribute("d", runs.map((run) => `M${run.map(([x, y]) => `${x} ${y}`).join("L")}`).join(""));
    this.#area.setAttribute("d", runs.map((run) => `M${run[0][0]} ${HEIGHT}L${run.map(([x, y]) => `${x} ${y}`).join("L")}L${run.at(-1)[0]} ${HEIGHT}Z`).join(""));
  }

  #runs(valued, latest, span, scale) {
    const runs = [];
    let before = -Infinity;
    for (const [at, value] of valued) {
      if (at - before > GAP) runs.push([]);
      before = at;
      const x = WIDTH - ((latest - at) / span) * WIDTH;
      const y = HEIGHT - (value / scale) * (HEIGHT - TOP);
      runs.at(-1).push([x.toFixed(1), y.toFixed(1)]);
    }
    return runs;
  }
}
