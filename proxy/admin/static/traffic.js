// From counters to rates: what each server, and all together, did in the last seconds and minutes.

const WINDOW = 10; // seconds that a rate is taken over
const HISTORY = 300; // seconds of the lines
const STEP = 1; // seconds between two points of a line at least: events make the page ask at odd moments
const STORED = "districhat-history";

const NOTHING = { calls: 0, errors: 0, latency_sum: 0, latency_counts: [] };

/** The difference of two states of the same counters; null if they began anew in between. */
export function difference(before, now) {
  if (now.calls < before.calls || now.errors < before.errors) return null;
  return {
    calls: now.calls - before.calls,
    errors: now.errors - before.errors,
    latency_counts: now.latency_counts.map((count, index) => count - (before.latency_counts[index] ?? 0)),
  };
}

/** The sum of counters. */
export function total(all) {
  const counts = [];
  let calls = 0;
  let errors = 0;
  for (const each of all) {
    calls += each.calls;
    errors += each.errors;
    each.latency_counts.forEach((count, index) => { counts[index] = (counts[index] ?? 0) + count; });
  }
  return { calls, errors, latency_counts: counts };
}

/**
 * The latency, in seconds, that a share (0 to 1) of the calls did not exceed, by linear interpolation within its bucket;
 * null without calls. `bounds`: upper bounds of all buckets but the last. In the last one: its lower bound.
 */
export function quantile(counts, bounds, share) {
  const calls = counts.reduce((sum, count) => sum + count, 0);
  if (!calls || !bounds.length) return null;
  const wanted = share * calls;
  let seen = 0;
  for (let index = 0; index < counts.length; index += 1) {
    if (counts[index] && seen + counts[index] >= wanted) {
      if (index >= bounds.length) return bounds.at(-1);
      const lower = index ? bounds[index - 1] : 0;
      return lower + ((bounds[index] - lower) * (wanted - seen)) / counts[index];
    }
    seen += counts[index];
  }
  return bounds.at(-1);
}

function rates(delta, seconds, bounds) {
  if (!delta || seconds <= 0) return { calls: null, errors: null, p50: null, p99: null };
  return {
    calls: delta.calls / seconds,
    errors: delta.calls ? delta.errors / delta.calls : null,
    p50: quantile(delta.latency_counts, bounds, 0.5),
    p99: quantile(delta.latency_counts, bounds, 0.99),
  };
}

/** Remembers the latest states of the counters. */
export class Traffic {
  #states = []; // {at, byId, all}, oldest first, one older than the window and all within it
  #remembered = null; // the state at the latest point of the history
  #bounds = [];
  /** Of the last minutes, oldest first: {at (ms), calls, errors, p50, p99, active}; values may be null. */
  history = [];

  /** Add an answer of /api/endpoints. */
  add(answer) {
    const at = Date.parse(answer.at);
    this.#bounds = answer.latency_bounds;
    const byId = new Map(answer.endpoints.map((each) => [each.id, each.traffic]));
    const state = { at, byId, all: total([...byId.values(), answer.unserved ?? NOTHING]) };
    const last = this.#states.at(-1);
    if (last && (at <= last.at || state.all.calls < last.all.calls)) { // another process answers now
      this.#states = [];
      this.#remembered = null;
    }
    this.#states.push(state);
    while (this.#states.length > 2 && this.#states[1].at <= at - WINDOW * 1000) this.#states.shift();
    this.#remember(at, answer.active_calls);
  }

  #remember(at, active) {
    const before = this.#remembered;
    if (before && at - before.at < STEP * 1000) return;
    const now = this.#remembered = this.#states.at(-1);
    const since = before ? rates(difference(before.all, now.all), (at - before.at) / 1000, this.#bounds) : rates(null);
    this.history.push({ at, active, ...since });
    const oldest = at - HISTORY * 1000;
    while (this.history.length && (this.history[0].at < oldest || this.history[0].at > at)) this.history.shift();
  }

  /** Keep the history for the next time that this tab shows the page. */
  save() {
    sessionStorage.setItem(STORED, JSON.stringify(this.history));
  }

  /** Take up what was kept; the gap since then stays one. */
  restore() {
    this.history = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
  }

  /** Rates of a server over the last seconds. */
  of(id) {
    return this.#over((state) => state.byId.get(id) ?? NOTHING);
  }

  /** Rates of all servers together. */
  ofAll() {
    return this.#over((state) => state.all);
  }

  #over(pick) {
    const first = this.#states[0];
    const now = this.#states.at(-1);
    if (!first || first === now) return rates(null);
    return rates(difference(pick(first), pick(now)), (now.at - first.at) / 1000, this.#bounds);
  }
}
