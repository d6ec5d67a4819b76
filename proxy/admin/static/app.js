// The page: asks the proxy again and again, hears its events, and gives what it learns to those who show it.

import { ProblemError, UnreachableError, events, get, token } from "./api.js";
import { showCalls } from "./calls.js";
import { LineChart } from "./chart.js";
import { colorOf } from "./colors.js";
import { byId, element, setText, swatch, toneOf } from "./dom.js";
import { DrainDialog } from "./drain.js";
import { showExplainError, showExplanation } from "./explain.js";
import { Feed } from "./feed.js";
import { age, count, duration, percent, rate } from "./format.js";
import { Ring } from "./ring.js";
import { EndpointTable } from "./table.js";
import { Traffic } from "./traffic.js";

const INTERVAL = 2000;
const LONG_INTERVAL = 5000; // with so many servers that the answers are large
const MANY = 200;
const RETRY = 1000;
const LEGEND = 12;
const CALLS = 20;

const traffic = new Traffic();
let endpoints = []; // of the last answer
let shownRing = ""; // fingerprint of what is drawn
let heard = null; // when the proxy last answered
let key = ""; // the chat that was asked for
let asking = null; // the refresh under way
let focused = null; // id of the server that is pointed at

const ring = new Ring(byId("ring"), byId("ring-group"), focus);
const drainDialog = new DrainDialog(refresh, (id) => endpoints.find((each) => each.id === id)?.status);
const table = new EndpointTable(byId("endpoints"), byId("filter"), byId("more"), {
  focus,
  drain: (id) => drainDialog.open(endpoints.find((each) => each.id === id)),
});
const feed = new Feed(byId("feed"));
const charts = {
  calls: new LineChart(byId("figure-calls"), rate, 1),
  errors: new LineChart(byId("figure-errors"), percent, 0.01),
  p99: new LineChart(byId("figure-latency"), duration, 0.001),
  active: new LineChart(byId("figure-active"), count, 2),
};

// What the reader points at.

function focus(id) {
  focused = id;
  ring.focus(id);
  const [name, share, state] = byId("ring-label").children;
  const endpoint = endpoints.find((each) => each.id === id);
  setText(name, endpoint ? endpoint.id : count(endpoints.length));
  name.classList.toggle("long", name.textContent.length > 16);
  setText(share, endpoint ? percent(endpoint.share) : endpoints.length === 1 ? "server" : "servers");
  setText(state, endpoint && !endpoint.available ? endpoint.status : "");
  for (const item of byId("legend").children) item.classList.toggle("focused", item.dataset.id === id);
}

function showLegend() {
  const largest = [...endpoints].sort((one, other) => other.share - one.share).slice(0, LEGEND);
  const drawn = largest.map(({ id, share, status }) => `${id} ${share} ${status}`).join("\n") + endpoints.length;
  const legend = byId("legend");
  if (legend.drawn === drawn) return;
  legend.drawn = drawn;
  const items = largest.map(({ id, share, available, status }) => {
    const item = element("li", { data: { id } }, swatch(colorOf(id)), element("span", { className: "id" }, id));
    if (!available) item.append(element("small", { data: { tone: toneOf(status) } }, status));
    item.append(element("span", { className: "number" }, percent(share)));
    item.addEventListener("pointerenter", () => focus(id));
    item.addEventListener("pointerleave", () => focus(null));
    return item;
  });
  const rest = endpoints.length - largest.length;
  if (rest > 0) items.push(element("li", { className: "note" }, `and ${count(rest)} more, with smaller shares`));
  legend.replaceChildren(...items);
}

// What the proxy says.

async function refreshOnce() {
  const answer = await get("/api/endpoints");
  const { snapshot } = answer;
  if (snapshot.fingerprint !== shownRing) {
    const drawn = await get("/api/ring");
    drawn.members.forEach((member) => colorOf(member.id));
    ring.draw(drawn);
    shownRing = drawn.snapshot.fingerprint;
  }
  endpoints = answer.endpoints;
  traffic.add(answer);
  ring.states(endpoints);
  showLegend();
  showFigures(answer.active_calls);
  table.update(endpoints.map((endpoint) => ({ endpoint, rates: traffic.of(endpoint.id) })));
  showState(answer.not_ready, snapshot);
  focus(focused);
  await Promise.all([showRecentCalls(), key ? explain() : undefined]);
}

async function showRecentCalls() {
  const asked = key;
  const query = asked ? `&key=${encodeURIComponent(asked)}` : "";
  const answer = await get(`/api/decisions?limit=${CALLS}${query}`);
  if (asked === key) showCalls(answer, asked);
}

function showFigures(active) {
  const now = traffic.ofAll();
  const line = (name) => traffic.history.map((each) => [each.at, each[name]]);
  charts.calls.draw(now.calls, line("calls"));
  charts.errors.draw(now.errors, line("errors"));
  charts.p99.draw(now.p99, line("p99"));
  charts.active.draw(active, line("active"));
}

function showState(reason, snapshot) {
  heard = Date.now();
  const available = endpoints.filter((each) => each.available).length;
  const state = byId("state");
  setText(state, reason ? `not ready: ${reason}` : "ready");
  state.dataset.tone = reason ? "bad" : "good";
  setText(byId("fact-servers"), `${count(available)} of ${count(endpoints.length)} available`);
  setText(byId("fact-ring"), snapshot.fingerprint);
  setText(byId("fact-snapshot"), count(snapshot.version));
  byId("gone").hidden = true;
  byId("content").classList.remove("stale");
  byId("forget-token").hidden = !token.get();
}

function showGone(message) {
  const last = heard ? ` What you see is ${age((Date.now() - heard) / 1000)} old.` : "";
  setText(byId("gone"), `${message}${last} Trying again …`);
  byId("gone").hidden = false;
  byId("content").classList.add("stale");
  setText(byId("state"), "no answer");
  byId("state").dataset.tone = "bad";
}

/** Ask for everything now; if that is under way already, wait for it and ask once more. */
async function refresh() {
  while (asking) await asking;
  asking = tryRefresh();
  await asking;
  asking = null;
}

async function tryRefresh() {
  try {
    await refreshOnce();
  } catch (error) {
    if (error instanceof ProblemError && error.status === 401) askForToken();
    else if (error instanceof UnreachableError) showGone("The proxy does not answer: it has ended, hangs, or cannot be reached from here.");
    else if (error instanceof ProblemError) showGone(`The proxy refuses: ${error.message}.`);
    else throw error;
  }
}

// A chat that was asked for.

async function explain() {
  const asked = key;
  const panel = byId("explanation");
  try {
    const explanation = await get(`/api/explain?key=${encodeURIComponent(asked)}`);
    if (asked !== key) return;
    ring.mark(explanation);
    const told = JSON.stringify(explanation);
    if (panel.told !== told) showExplanation(panel, explanation, () => search(""));
    panel.told = told;
  } catch (error) {
    if (!(error instanceof ProblemError) || error.status === 401) throw error;
    ring.mark(null);
    panel.told = "";
    showExplainError(panel, error.message);
  }
}

function search(text) {
  key = text;
  byId("key").value = text;
  const fragment = text ? `#key=${encodeURIComponent(text)}` : location.pathname;
  if (location.hash !== fragment) history.replaceState(null, "", fragment);
  if (text) return refresh();
  byId("explanation").hidden = true;
  byId("explanation").told = "";
  ring.mark(null);
  return undefined;
}

function keyInAddress() {
  try {
    return location.hash.startsWith("#key=") ? decodeURIComponent(location.hash.slice(5)) : "";
  } catch {
    return "";
  }
}

// The token.

function askForToken() {
  const dialog = byId("token-dialog");
  if (dialog.open) return;
  byId("token-error").hidden = !token.get();
  setText(byId("token-error"), "The proxy does not accept this token.");
  token.forget();
  byId("token").value = "";
  dialog.showModal();
}

byId("token-dialog").addEventListener("submit", () => {
  token.set(byId("token").value.trim());
  refresh();
});
byId("token-dialog").addEventListener("cancel", (event) => event.preventDefault());
byId("forget-token").addEventListener("click", () => {
  token.forget();
  location.reload();
});

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search(byId("key").value);
});
byId("key").addEventListener("input", () => {
  if (!byId("key").value) search("");
});
window.addEventListener("hashchange", () => search(keyInAddress()));

// What goes on by itself.

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

async function keepAsking() {
  for (;;) {
    await refresh();
    await pause(endpoints.length > MANY ? LONG_INTERVAL : INTERVAL);
  }
}

async function keepListening() {
  let last = 0;
  for (;;) {
    try {
      for await (const event of events(last)) {
        if (event.id <= last) feed.note("The proxy was started anew.");
        last = event.id;
        feed.add(event);
        refreshSoon();
      }
    } catch (error) {
      if (!(error instanceof UnreachableError || error instanceof ProblemError || error instanceof TypeError)) throw error;
    }
    await pause(RETRY);
  }
}

let soon = null;
function refreshSoon() {
  soon ??= setTimeout(() => {
    soon = null;
    refresh();
  }, 50);
}

traffic.restore();
window.addEventListener("pagehide", () => traffic.save());
if (keyInAddress()) search(keyInAddress());
keepAsking();
keepListening();
