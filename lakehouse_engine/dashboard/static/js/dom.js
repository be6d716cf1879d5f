// Elements without markup in strings: what comes from the database is always text.
const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

export const h = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

/** Sets text only where it differs: a screen reader does not hear every second what stays. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Replaces the children when what they are made from has changed. */
export function renew(element, made, make) {
  const key = JSON.stringify(made);
  if (element.madeFrom === key) return;
  element.madeFrom = key;
  element.replaceChildren(...[make(made)].flat(Infinity));
}
