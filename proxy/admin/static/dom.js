// Building the page. Text is only ever set as text: nothing here takes HTML, and the page's policy would refuse it.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with these properties (className, type, hidden, ...), data attributes and ARIA, and children. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(node.dataset, value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** An SVG element with these attributes. */
export function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Set a node's text, touching the page only if it differs. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A small square in a server's colour. */
export function swatch(color) {
  const node = element("span", { className: "swatch", "aria-hidden": "true" });
  node.style.background = color;
  return node;
}

const TONES = { available: "good", draining: "quiet", ejected: "bad", unhealthy: "bad", unreachable: "bad" };

/** How a state should strike the eye; states to come are of no particular tone. */
export const toneOf = (status) => TONES[status] ?? "quiet";

/** A state as a word on a tinted ground. */
export function badge(status) {
  return element("span", { className: "badge", data: { tone: toneOf(status) } }, status);
}
