// The keys that work everywhere; a view adds its own through the map that `listen` is given.

import { h } from "./dom.js";

const dialog = document.getElementById("keys");
const trail = [location.hash]; // pages opened since this one was loaded: Esc goes back through them, then up
let leaving = false; // the browser was told to go back and has not yet

const EVERYWHERE = [
  ["j, k", "next, previous entry of the list"],
  ["Enter", "open it"],
  ["/", "to the filter"],
  ["Esc", "leave a field; back"],
  ["r", "all runs"],
  ["?", "these keys"],
];

function help(own) {
  const rows = [...EVERYWHERE, ...Object.values(own).filter((one) => one.help).map((one) => one.help)];
  dialog.replaceChildren(
    h("h2", { id: "keys-title" }, "Keys"),
    h("dl", {}, rows.map(([keys, text]) =>
      [h("dt", {}, keys.split(", ").map((key) => h("kbd", {}, key))), h("dd", {}, text)])),
    h("form", { method: "dialog" }, h("button", {}, "Close")),
  );
  dialog.showModal();
}

/** The next (1) or previous (-1) entry of the list in view gets the focus. */
function move(main, by) {
  const items = [...main.querySelectorAll(".item")].filter((one) => one.checkVisibility());
  if (!items.length) return;
  const row = document.activeElement?.closest("[data-key]");
  const here = items.findIndex((one) => one === document.activeElement || (row && one.closest("[data-key]") === row));
  const next = here < 0 ? (by > 0 ? 0 : items.length - 1) : Math.min(items.length - 1, Math.max(0, here + by));
  items[next].focus();
  items[next].scrollIntoView({ block: "nearest" });
}

function back() {
  if (trail.length > 1) {
    leaving = true;
    history.back();
  } else {
    const up = [...document.querySelectorAll("#crumbs a")].pop();
    go(up ? up.hash : "#/");
  }
}

/** The browser goes back when it gets to it: a page that is asked for meanwhile comes after that, not before. */
function go(hash) {
  if (leaving) window.addEventListener("hashchange", () => { location.hash = hash; }, { once: true });
  else location.hash = hash;
}

/** `own()` maps the shown view's keys to {run, help}. */
export function listen(main, own) {
  document.getElementById("help").onclick = () => help(own());
  window.addEventListener("hashchange", () => {
    leaving = false;
    if (trail.at(-2) === location.hash) trail.pop();
    else trail.push(location.hash);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    const field = event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea");
    if (event.key === "Escape") {
      if (field) event.target.blur();
      else back();
    } else if (field) return;
    else if (event.key === "j" || event.key === "k") move(main, event.key === "j" ? 1 : -1);
    else if (event.key === "/") main.querySelector("[data-filter]")?.focus();
    else if (event.key === "?") help(own());
    else if (event.key === "r") go("#/");
    else if (own()[event.key]) own()[event.key].run();
    else return;
    event.preventDefault();
  });
}
