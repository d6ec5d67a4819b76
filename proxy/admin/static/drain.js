// The confirmation of drain and undrain, with what they will move.

import { ProblemError, get, post } from "./api.js";
import { colorOf } from "./colors.js";
import { badge, byId, element, swatch } from "./dom.js";
import { count, percent, plural } from "./format.js";

const SHOWN_MOVES = 5;

function moveOf(move, sign, statusOf) {
  const other = sign > 0 ? move.target : move.source;
  const status = statusOf(other);
  const chats = move.chats ? `, ${plural(move.chats, "chat")}` : "";
  const name = element("span", {}, element("span", { className: "id" }, other));
  if (status && status !== "available") name.append(" ", badge(status)); // the walk goes on past it
  return element("li", {}, swatch(colorOf(other)), name, element("span", { className: "number" }, `${percent(move.share)}${chats}`));
}

/** What a plan says: how much moves, and where to (`sign` 1) or where from (-1). */
function planText(plan, id, sign, statusOf) {
  const recent = plan.recent_chats
    ? ` ${count(plan.moved_chats)} of ${plural(plan.recent_chats, "chat")} seen recently ${plan.moved_chats === 1 ? "is" : "are"} among them.`
    : "";
  const moves = sign > 0 ? plan.moves : plan.moves.map((move) => ({ ...move, source: move.target, target: move.source }));
  const shown = moves.slice(0, SHOWN_MOVES);
  const rest = moves.length - shown.length;
  const list = element("ul", {}, ...shown.map((move) => moveOf(move, sign, statusOf)));
  if (rest > 0) list.append(element("li", { className: "note" }, `and ${plural(rest, "more server")}`));
  return [
    element("p", {}, `${id} owns `, element("strong", {}, percent(plan.moved_share)), ` of the key space.${recent} `,
      sign > 0 ? "New calls of these chats go to:" : "New calls of these chats come back from:"),
    list,
  ];
}

export class DrainDialog {
  #dialog = byId("drain-dialog");
  #done;
  #statusOf;
  #request = null;

  /** `done()`: something has changed. `statusOf(id)`: how a server is now. */
  constructor(done, statusOf) {
    this.#done = done;
    this.#statusOf = statusOf;
    byId("drain-cancel").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#confirm();
    });
  }

  /** Ask whether to drain (or undrain) `endpoint`. */
  async open(endpoint) {
    const drained = endpoint.blocks.some((block) => block.cause === "operator");
    this.#request = { id: endpoint.id, action: drained ? "undrain" : "drain" };
    byId("drain-title").textContent = drained ? `Undrain ${endpoint.id}?` : `Drain ${endpoint.id}?`;
    byId("drain-confirm").textContent = drained ? "Undrain" : "Drain";
    byId("drain-confirm").disabled = false;
    byId("drain-reason").value = "";
    byId("drain-reason-row").hidden = drained;
    byId("drain-force").checked = false;
    byId("drain-force-row").hidden = true;
    this.#fail("");
    byId("drain-plan").replaceChildren(element("p", { className: "note" }, "Looking up what would move …"));
    this.#dialog.showModal();
    await this.#showPlan(endpoint, drained ? -1 : 1);
  }

  async #showPlan(endpoint, sign) {
    const wanted = this.#request;
    const path = `/api/plan?remove=${encodeURIComponent(endpoint.id)}`;
    let plan;
    try {
      plan = planText(await get(path), endpoint.id, sign, this.#statusOf);
    } catch (error) {
      plan = [element("p", {}, `${endpoint.id} owns ${percent(endpoint.share)} of the key space. What would move is not known: ${error.message}.`)];
    }
    if (this.#request !== wanted) return; // another dialog has been opened meanwhile
    const calls = endpoint.active_calls;
    const running = calls ? `The ${plural(calls, "call")} that it has now will finish there.` : "It has no call now.";
    byId("drain-plan").replaceChildren(...plan, element("p", { className: "note" }, sign > 0 ? running : "Calls under way stay where they are."));
  }

  async #confirm() {
    const { id, action } = this.#request;
    const body = action === "drain" ? { reason: byId("drain-reason").value.trim(), force: byId("drain-force").checked } : {};
    byId("drain-confirm").disabled = true;
    try {
      await post(`/api/endpoints/${encodeURIComponent(id)}/${action}`, body);
      this.#dialog.close();
      this.#done();
    } catch (error) {
      this.#fail(error.message);
      byId("drain-force-row").hidden = !(error instanceof ProblemError && error.status === 409);
    } finally {
      byId("drain-confirm").disabled = false;
    }
  }

  #fail(message) {
    byId("drain-error").hidden = !message;
    byId("drain-error").textContent = message;
  }
}
