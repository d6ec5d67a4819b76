// Numbers for people. A number that is not known is a dash, never a zero.

const UNKNOWN = "–";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** A count, with groups of three digits. */
export const count = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : UNKNOWN);

/** Something per second: with a decimal only where it matters. */
export function rate(value) {
  if (!known(value)) return UNKNOWN;
  return value > 0 && value < 10 ? value.toFixed(1) : count(value);
}

/** A share of one as percent; what is not nothing never reads 0 %. */
export function percent(value, digits = 1) {
  if (!known(value)) return UNKNOWN;
  const least = 10 ** -digits / 100;
  if (value > 0 && value < least / 2) return `< ${(least * 100).toFixed(digits)} %`;
  return `${(value * 100).toFixed(digits)} %`;
}

/** Seconds, in the unit that gives one to three digits before the point. */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const ms = seconds * 1000;
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return seconds < 100 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
}

/** How long ago, roughly: what one wants to know of a state. */
export function age(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

/** The time of day, here. */
export const clock = (date) => date.toLocaleTimeString("en-GB");

/** "1 call", "2 calls". */
export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
