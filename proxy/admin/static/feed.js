// What happened, newest first.

import { colorOf } from "./colors.js";
import { element, swatch } from "./dom.js";
import { clock } from "./format.js";

const KEPT = 200;
const TONES = {
  ejected: "bad", unhealthy: "bad", unreachable: "bad",
  recovered: "good", healthy: "good", reachable: "good", undrained: "good",
};

function entry(event) {
  const at = new Date(event.at);
  const time = element("time", { dateTime: event.at, title: at.toLocaleString("en-GB") }, clock(at));
  const what = element("span", { className: "badge", data: { tone: TONES[event.type] ?? "quiet" } }, event.type);
  const node = element("li", { data: { type: event.type, endpoint: event.endpoint } }, time, what);
  const text = element("span", { className: "what" });
  if (event.endpoint) text.append(swatch(colorOf(event.endpoint)), element("span", { className: "id" }, event.endpoint));
  if (event.detail) text.append(element("small", {}, event.detail));
  node.append(text);
  return node;
}

export class Feed {
  #list;

  constructor(list) {
    this.#list = list;
    this.#list.append(element("li", { className: "nothing" }, "Nothing has happened yet."));
  }

  add(event) {
    this.#list.querySelector(".nothing")?.remove();
    this.#list.prepend(entry(event));
    while (this.#list.children.length > KEPT) this.#list.lastChild.remove();
  }

  /** The proxy was started anew: what it says now is not after what it said before. */
  note(text) {
    this.#list.querySelector(".nothing")?.remove();
    this.#list.prepend(element("li", { className: "note" }, element("time", {}, clock(new Date())), text));
  }
}
