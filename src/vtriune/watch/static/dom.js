// Building and patching the DOM. Text from runs enters the page here only, and only as text nodes and attributes.

const HANDLERS = [
  "onclick", "onchange", "oninput", "onsubmit", "onkeydown", "onmouseenter", "onmouseleave", "onfocus", "onblur",
];

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (HANDLERS.includes(name)) element[name] = value;
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false));
  return element;
}

/** An HTML element: `h("a", { href }, "text", child)`; null, undefined and false are left out. */
export const h = (tag, properties = {}, ...children) => fill(document.createElement(tag), properties, children);

/** The same for SVG. */
export const svg = (tag, properties = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);

/** Cells of numbers. */
export const numbers = (...contents) => contents.map((one) => h("td", { class: "n" }, one));

/** The head of a table: names, those of columns of numbers in a list of their own; elements stay as they are. */
export const heads = (...names) =>
  h("thead", {}, h("tr", {}, names.map((one) => {
    if (Array.isArray(one)) return one.map((name) => h("th", { class: "n" }, name));
    return one instanceof Node ? one : h("th", {}, one);
  })));

/** Names with their values, in columns. */
export const figures = (pairs) =>
  h("dl", { class: "figures" }, pairs.map(([name, value]) =>
    h("div", {}, h("dt", {}, bdi(name.replaceAll("_", " "))), h("dd", {}, bdi(value)))));

/** A name or text from a run: its own direction of writing, so that it can't reorder what stands beside it. */
export const bdi = (text, properties = {}) => h("bdi", properties, text);

/** A link inside the page: the parts of the path and the query are escaped here. */
export function to(parts, query = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query))
    for (const one of [value].flat()) if (one !== "" && one !== null && one !== undefined) search.append(name, one);
  const text = search.toString();
  return "#/" + parts.map(encodeURIComponent).join("/") + (text ? "?" + text : "");
}

/**
 * Make the children of `old` like those of `fresh`, keeping the nodes that stay, and with them scroll, focus and open
 * folds. Nodes are matched by `data-key`, else by place; what is marked `data-own` looks after itself once it is there.
 */
export function morph(old, fresh) {
  const keyed = new Map([...old.children].filter((one) => one.dataset.key).map((one) => [one.dataset.key, one]));
  let at = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const key = next.dataset?.key;
    const match = key ? keyed.get(key) : at && !at.dataset?.key ? at : null;
    if (!match || match.nodeName !== next.nodeName) {
      old.insertBefore(next, at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else old.insertBefore(match, at);
    patch(match, next);
  }
  while (at) {
    const after = at.nextSibling;
    at.remove();
    at = after;
  }
}

function patch(old, next) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  if (old.dataset.own !== undefined) return;
  const kept = ["open", "style", "value", "checked"];
  for (const { name } of [...old.attributes])
    if (!next.hasAttribute(name) && !kept.includes(name)) old.removeAttribute(name);
  for (const { name, value } of next.attributes)
    if (!kept.includes(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (old.style.cssText !== next.style.cssText) old.style.cssText = next.style.cssText;
  for (const name of HANDLERS) if (old[name] !== next[name]) old[name] = next[name];
  morph(old, next);
}
