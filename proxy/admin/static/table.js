// The table of servers: sorted, filtered, and changed cell by cell, so that a thousand rows cost little.

import { colorOf } from "./colors.js";
import { badge, element, setText, swatch, toneOf } from "./dom.js";
import { age, count, duration, percent, rate } from "./format.js";

const FIRST_ROWS = 100;
const byNumber = (pick) => (one, other) => (pick(one) ?? -1) - (pick(other) ?? -1);
const byText = (pick) => (one, other) => pick(one).localeCompare(pick(other), "en", { numeric: true });
const hits = (cache) => (cache && cache.requests ? cache.hits / cache.requests : null);

// What stands in each column, given {endpoint, rates}: its head, its order, and its text where text is all of it.
const COLUMNS = [
  { name: "Server", order: byText(({ endpoint }) => endpoint.id) },
  { name: "State", order: byText(({ endpoint }) => endpoint.status) },
  { name: "Share", number: true, order: byNumber(({ endpoint }) => endpoint.share), text: ({ endpoint }) => percent(endpoint.share) },
  { name: "Active", number: true, order: byNumber(({ endpoint }) => endpoint.active_calls), text: ({ endpoint }) => count(endpoint.active_calls) },
  { name: "Calls/s", number: true, order: byNumber(({ rates }) => rates.calls), text: ({ rates }) => rate(rates.calls) },
  { name: "Errors", number: true, order: byNumber(({ rates }) => rates.errors), text: ({ rates }) => percent(rates.errors) },
  { name: "p50", title: "Median latency", number: true, order: byNumber(({ rates }) => rates.p50), text: ({ rates }) => duration(rates.p50) },
  { name: "p99", title: "Latency, 99th percentile", number: true, order: byNumber(({ rates }) => rates.p99), text: ({ rates }) => duration(rates.p99) },
  { name: "Cache hits", title: "Of a reference server: share of requests whose session was in its cache", number: true, order: byNumber(({ endpoint }) => hits(endpoint.cache)), text: ({ endpoint }) => percent(hits(endpoint.cache)) },
  { name: "L1", title: "Sessions in level 1 of the cache, of how many", number: true, order: byNumber(({ endpoint }) => endpoint.cache?.l1_size), text: ({ endpoint }) => level(endpoint.cache?.l1_size, endpoint.cache?.l1_capacity) },
  { name: "L2", title: "Sessions in level 2 of the cache, of how many", number: true, order: byNumber(({ endpoint }) => endpoint.cache?.l2_size), text: ({ endpoint }) => level(endpoint.cache?.l2_size, endpoint.cache?.l2_capacity) },
];

function level(size, capacity) {
  return size === undefined ? "–" : `${count(size)} / ${count(capacity)}`;
}

function since(block) {
  return block.since ? `, for ${age((Date.now() - Date.parse(block.since)) / 1000)}` : "";
}

/** One server's row. */
class Row {
  #cells;
  #state;
  #button;

  constructor(endpoint, actions) {
    this.#cells = COLUMNS.map(({ name, number }) => element("td", { role: "cell", className: number ? "number" : "", data: { label: name } }));
    this.#state = { badge: badge(""), why: element("span", { className: "why" }) };
    this.#button = element("button", { type: "button" });
    this.#button.addEventListener("click", () => actions.drain(endpoint.id));
    const name = element("span", { className: "id" }, endpoint.id);
    this.address = element("span", { className: "address" });
    this.#cells[0].append(swatch(colorOf(endpoint.id)), element("span", { className: "names" }, name, this.address));
    this.#cells[1].append(this.#state.badge, this.#state.why);
    const last = element("td", { role: "cell", className: "action" }, this.#button);
    this.node = element("tr", { role: "row", data: { id: endpoint.id } }, ...this.#cells, last);
    this.node.addEventListener("pointerenter", () => actions.focus(endpoint.id));
    this.node.addEventListener("pointerleave", () => actions.focus(null));
  }

  update(entry) {
    const { endpoint } = entry;
    setText(this.address, endpoint.address);
    setText(this.#state.badge, endpoint.status);
    this.#state.badge.dataset.tone = toneOf(endpoint.status);
    setText(this.#state.why, endpoint.blocks.map((block) => `${block.reason}${since(block)}`).join("; "));
    COLUMNS.forEach(({ text }, index) => text && setText(this.#cells[index], text(entry)));
    const drained = endpoint.blocks.some((block) => block.cause === "operator");
    setText(this.#button, drained ? "Undrain" : "Drain");
    this.#button.setAttribute("aria-label", `${drained ? "Undrain" : "Drain"} ${endpoint.id}`);
  }
}

export class EndpointTable {
  #body = element("tbody", { role: "rowgroup" });
  #heads;
  #rows = new Map();
  #entries = [];
  #sorted = { column: 0, descending: false };
  #filter = "";
  #all = false;
  #more;
  #actions;

  /** `actions`: `drain(id)` (or undrain) and `focus(id or null)`. `more`: where to offer the rest of a long table. */
  constructor(table, filter, more, actions) {
    this.#actions = actions;
    this.#more = more;
    this.#heads = COLUMNS.map((column, index) => this.#head(column, index));
    const action = element("th", { role: "columnheader", scope: "col" }, element("span", { className: "hidden" }, "Action"));
    const heads = element("tr", { role: "row" }, ...this.#heads, action);
    table.append(element("thead", { role: "rowgroup" }, heads), this.#body);
    filter.addEventListener("input", () => {
      this.#filter = filter.value.trim().toLowerCase();
      this.#show();
    });
    this.#markSorted();
  }

  /** `entries`: [{endpoint, rates}, ...] */
  update(entries) {
    this.#entries = entries;
    const present = new Set(entries.map(({ endpoint }) => endpoint.id));
    for (const [id, row] of this.#rows) {
      if (present.has(id)) continue;
      row.node.remove();
      this.#rows.delete(id);
    }
    this.#show();
  }

  #head({ name, title, number }, index) {
    const button = element("button", { type: "button", className: "sort" }, name);
    if (title) button.title = title;
    button.addEventListener("click", () => {
      const again = this.#sorted.column === index;
      this.#sorted = { column: index, descending: again ? !this.#sorted.descending : Boolean(number) };
      this.#markSorted();
      this.#show();
    });
    return element("th", { role: "columnheader", scope: "col", className: number ? "number" : "" }, button);
  }

  #markSorted() {
    const { column, descending } = this.#sorted;
    this.#heads.forEach((head, index) => {
      head.setAttribute("aria-sort", index !== column ? "none" : descending ? "descending" : "ascending");
    });
  }

  #show() {
    const { column, descending } = this.#sorted;
    const matching = this.#entries.filter(({ endpoint }) => this.#matches(endpoint));
    matching.sort(COLUMNS[column].order);
    if (descending) matching.reverse();
    const shown = this.#all ? matching : matching.slice(0, FIRST_ROWS);
    const nodes = shown.map((entry) => {
      let row = this.#rows.get(entry.endpoint.id);
      if (!row) {
        row = new Row(entry.endpoint, this.#actions);
        this.#rows.set(entry.endpoint.id, row);
      }
      row.update(entry);
      return row.node;
    });
    const same = nodes.length === this.#body.children.length && nodes.every((node, index) => this.#body.children[index] === node);
    if (!same) {
      // What is put in again loses the keyboard's focus.
      const focused = this.#body.contains(document.activeElement) ? document.activeElement : null;
      this.#body.replaceChildren(...nodes);
      focused?.focus({ preventScroll: true });
    }
    this.#offerMore(shown.length, matching.length);
  }

  #matches({ id, address, status }) {
    return !this.#filter || [id, address, status].some((text) => text.toLowerCase().includes(this.#filter));
  }

  #offerMore(shown, matching) {
    this.#more.hidden = shown === matching && matching > 0;
    if (this.#more.hidden) return;
    if (!matching) return this.#more.replaceChildren(this.#entries.length ? "No server matches." : "There are no servers.");
    const text = `${count(shown)} of ${count(matching)} servers. `;
    if (this.#more.firstChild?.textContent === text) return;
    const button = element("button", { type: "button" }, "Show all");
    button.addEventListener("click", () => {
      this.#all = true;
      this.#show();
    });
    this.#more.replaceChildren(text, button);
  }
}
