// The answer to "which server, and why": in words, as the walk from server to server.

import { colorOf } from "./colors.js";
import { badge, element, swatch } from "./dom.js";
import { percent, plural } from "./format.js";

function stop(candidate, explanation) {
  const roles = [candidate.id === explanation.owner ? "owner" : "", candidate.chosen ? "takes the call" : ""].filter(Boolean);
  const node = element("li", { data: { id: candidate.id } }, swatch(colorOf(candidate.id)));
  const text = element("div", {}, element("span", { className: "id" }, candidate.id));
  if (roles.length) text.append(" ", element("strong", {}, roles.join(", ")));
  if (!candidate.available) text.append(" ", badge(candidate.status));
  if (candidate.passed_over) text.append(element("small", {}, candidate.passed_over));
  node.append(text);
  if (candidate.chosen) node.classList.add("chosen");
  return node;
}

function walk(explanation) {
  const chosen = explanation.candidates.findIndex((each) => each.chosen);
  const shown = explanation.candidates.slice(0, Math.max(chosen + 3, 4));
  const more = explanation.more_candidates + explanation.candidates.length - shown.length;
  const list = element("ol", { className: "walk", "aria-label": "The walk, from the key's owner on" });
  list.append(...shown.map((each) => stop(each, explanation)));
  return more ? [list, element("p", { className: "note" }, `and ${plural(more, "server")} after that`)] : [list];
}

function fact(name, value, className = "") {
  return element("div", {}, element("dt", {}, name), element("dd", { className }, value));
}

/** Show an explanation in `panel`. `close` is called when the reader has done with it. */
export function showExplanation(panel, explanation, close) {
  const button = element("button", { type: "button", className: "plain close", "aria-label": "Close" }, "×");
  button.addEventListener("click", close);
  const hash = `0x${explanation.hash.toString(16).padStart(8, "0")}`;
  panel.replaceChildren(
    element("div", { className: "explained" }, element("h3", { className: "id" }, explanation.key), button),
    element("p", { className: "summary" }, `${explanation.summary}.`),
    element("dl", { className: "facts" }, fact("Hash", hash, "code"), fact("On the ring at", percent(explanation.position, 2))),
    ...walk(explanation),
  );
  panel.hidden = false;
}

/** Say that a key could not be looked up. */
export function showExplainError(panel, message) {
  panel.replaceChildren(element("p", { className: "error" }, message));
  panel.hidden = false;
}
