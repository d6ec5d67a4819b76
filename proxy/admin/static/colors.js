// A colour for each server, the same as long as this page is open, whoever comes or goes.

// Hues apart from one another also for most who see fewer colours; lightness and chroma are the theme's (style.css).
const HUES = [258, 52, 180, 350, 110, 300, 25, 222];
const GOLDEN_ANGLE = 137.508;

const places = new Map();

function hueOf(place) {
  return place < HUES.length ? HUES[place] : (place * GOLDEN_ANGLE) % 360;
}

/** The colour of a server, as CSS. The first one asked for gets the first colour. */
export function colorOf(id) {
  let place = places.get(id);
  if (place === undefined) {
    place = places.size;
    places.set(id, place);
  }
  // Beyond the first round, two grades of lightness tell neighbours in hue apart.
  const grade = place < HUES.length ? 0 : place % 3;
  return `oklch(calc(var(--arc-lightness) + ${(grade - (place < HUES.length ? 0 : 1)) * 0.07}) var(--arc-chroma) ${hueOf(place).toFixed(1)})`;
}
