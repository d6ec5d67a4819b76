// Numbers for people. A number that is not known is a dash, never a zero; number and unit stay on one line.

const UNKNOWN = "–";
const SPACE = "\u00a0";
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
  if (value > 0 && value < least / 2) return `<${SPACE}${(least * 100).toFixed(digits)}${SPACE}%`;
  return `${(value * 100).toFixed(digits)}${SPACE}%`;
}

/** Seconds, in the unit that gives one to three digits before the point. */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const ms = seconds * 1000;
  if (ms < 1) return `${Math.round(ms * 1000)}${SPACE}µs`;
  if (ms < 10) return `${ms.toFixed(1)}${SPACE}ms`;
  if (ms < 1000) return `${Math.round(ms)}${SPACE}ms`;
  return seconds < 100 ? `${seconds.toFixed(1)}${SPACE}s` : `${Math.round(seconds)}${SPACE}s`;
}

/** How long ago, roughly: what one wants to know of a state. */
export function age(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))}${SPACE}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}${SPACE}min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)}${SPACE}h`;
  return `${Math.floor(seconds / 86400)}${SPACE}d`;
}

/** The time of day, here. */
export const clock = (date) => date.toLocaleTimeString("en-GB");

/** "1 call", "2 calls". */
export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
