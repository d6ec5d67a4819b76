// Recent calls: where they went, with whom they were tried before, and why.

import { colorOf } from "./colors.js";
import { byId, element, setText, swatch } from "./dom.js";
import { clock, count, duration } from "./format.js";

const tone = (status) => (status === "OK" ? "good" : status === "CANCELLED" ? "quiet" : "bad");

/** What is worth a word beside who answered: the way there, if it was not the straight one. */
function wayOf({ endpoint, owner, attempts, reasons }) {
  const tried = attempts.filter((each) => each.endpoint !== endpoint).map((each) => `${each.endpoint}: ${each.outcome}`);
  const words = [...tried, reasons].filter(Boolean);
  if (!words.length && owner && endpoint && owner !== endpoint) words.push(`owner: ${owner}`);
  return words.join("; ");
}

function entry(call) {
  const at = new Date(call.at);
  const node = element("li", {}, element("time", { dateTime: call.at, title: at.toLocaleString("en-GB") }, clock(at)));
  node.append(element("span", { className: "badge", data: { tone: tone(call.status) } }, call.status));
  const text = element("span", { className: "what" });
  if (call.endpoint) text.append(swatch(colorOf(call.endpoint)));
  text.append(element("span", { className: "id" }, call.endpoint ?? "no server"), element("span", { className: "note" }, duration(call.seconds)));
  const method = call.method.slice(call.method.lastIndexOf("/") + 1);
  text.append(element("small", {}, [method, call.chat].filter(Boolean).join(" ")));
  const way = wayOf(call);
  if (way) text.append(element("small", {}, way));
  node.append(text);
  return node;
}

/** Show an answer of /api/decisions, which was asked for one chat if `key` is not empty. */
export function showCalls({ sample, decisions }, key) {
  const list = byId("calls");
  byId("calls-card").hidden = !sample;
  setText(byId("calls-title"), key ? "Recent calls of this chat" : "Recent calls");
  setText(byId("calls-sample"), sample > 1 ? `one in ${count(sample)} is told` : "");
  const told = JSON.stringify([decisions, key]);
  if (list.told === told) return;
  list.told = told;
  const nothing = element("li", { className: "nothing" }, "None is remembered.");
  list.replaceChildren(...(decisions.length ? decisions.map(entry) : [nothing]));
}
