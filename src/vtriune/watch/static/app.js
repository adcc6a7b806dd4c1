// Routes, and the loop that keeps the shown view up to date. What a view shows is in views/, keys are in keys.js.
//
// A view has title(route), load(route, signal, show) -> data and draw(data, route) -> nodes, both free of side effects
// on the page, and where it needs them crumbs(route), runs(route) (whose growth is a reason to load again),
// after(main, data, route, signal) for what is drawn by hand, unfinished(data), and moved(main, route) where a new
// query changes what is there instead of showing a new page.

import { baked, get, Refused, Unreachable } from "./api.js";
import { bdi, h, morph, to } from "./dom.js";
import { listen } from "./keys.js";
import * as grid from "./views/grid.js";
import * as group from "./views/group.js";
import * as rollouts from "./views/rollouts.js";
import * as runs from "./views/runs.js";
import * as source from "./views/source.js";

const EVERY = 3000; // ms between two looks at the server
const VIEWS = { "": runs, run: grid, source, rollouts, group };
const PARTS = { "": 0, run: 1, source: 2, rollouts: 1, group: 5 }; // of an address, after its name

const main = document.getElementById("main");
const gone = document.getElementById("gone");
const link = document.getElementById("link");

let route = null; // what is shown
let waiting = new AbortController(); // ends what was asked for an earlier view
let timer = 0;
let stamp = null; // how the shown runs stood when their view was loaded
let lost = null; // since when the server does not answer

function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  try {
    const [name, ...parts] = path.split("/").map(decodeURIComponent);
    const known = Object.hasOwn(VIEWS, name) && parts.length === PARTS[name];
    return { name, parts, query: new URLSearchParams(query), view: known ? VIEWS[name] : null };
  } catch {
    return { name: path, parts: [], query: new URLSearchParams(), view: null }; // a broken escape
  }
}

async function open() {
  waiting.abort();
  clearTimeout(timer);
  const before = route;
  route = parse(location.hash || home());
  waiting = new AbortController();
  stamp = null;
  const focused = document.activeElement?.id;
  heading();
  if (!route.view) {
    fresh(problem("No such page", `There is nothing at ${location.hash}.`));
    return;
  }
  const stays = before?.view === route.view && route.view.moved && before.parts.join("/") === route.parts.join("/")
    && main.dataset.view === route.name;
  if (stays) route.view.moved(main, route);
  const slow = setTimeout(() => {
    if (stays) main.setAttribute("aria-busy", "true");
    else fresh(h("p", { class: "empty" }, "Loading …"));
  }, 200);
  waiting.signal.addEventListener("abort", () => clearTimeout(slow)); // another view has been opened meanwhile
  await refresh(true, () => clearTimeout(slow), stays);
  if (document.activeElement === document.body && before)
    (document.getElementById(focused) ?? main).focus({ preventScroll: true });
}

/** Load the view and show it; without `whole` only if the runs that it shows have moved on. */
async function refresh(whole = false, shown = () => {}, stays = !whole) {
  const { signal } = waiting;
  const here = route;
  let patches = stays; // else the first drawing replaces the page
  const show = (data) => {
    if (signal.aborted) return;
    shown();
    const nodes = here.view.draw(data, here);
    if (patches) morph(main, h("main", {}, ...nodes));
    else fresh(...nodes);
    main.removeAttribute("aria-busy");
    patches = true;
    here.view.after?.(main, data, here, signal);
  };
  try {
    const now = await standing(here, signal);
    if (signal.aborted) return;
    if (whole || now !== stamp) {
      const data = await here.view.load(here, signal, show);
      if (signal.aborted) return;
      show(data);
      stamp = here.view.unfinished?.(data) ? null : now;
    }
    answered();
  } catch (error) {
    if (signal.aborted) return;
    shown();
    if (error instanceof Unreachable) unanswered(error, whole);
    else if (error instanceof Refused) {
      answered();
      fresh(problem("This can't be shown", error.message));
      stamp = null;
    } else throw error;
  } finally {
    if (!signal.aborted) again();
  }
}

/** How the runs of a view stand, as text to compare. */
async function standing(here, signal) {
  const { runs: all } = await get("/api/runs", {}, signal);
  const names = here.view.runs?.(here);
  return JSON.stringify(names ? all.filter((one) => names.includes(one.name)) : all);
}

function again() {
  clearTimeout(timer);
  if (!baked && !document.hidden) timer = setTimeout(() => refresh(main.dataset.view === "problem"), EVERY);
}

function fresh(...nodes) {
  main.dataset.view = nodes[0]?.dataset?.problem ? "problem" : route.name;
  main.replaceChildren(...nodes.flat(Infinity).filter(Boolean));
}

const problem = (title, sentence) =>
  h("section", { class: "empty", role: "alert", "data-problem": "1" }, h("h1", {}, title), h("p", {}, bdi(sentence)),
    h("p", {}, h("a", { href: "#/" }, "All runs")));

function answered() {
  lost = null;
  gone.hidden = true;
  link.textContent = baked ? `report of ${baked.made}` : "● live";
  link.className = "link";
}

function unanswered(error, whole) {
  lost ??= new Date();
  const since = lost.toLocaleTimeString();
  gone.textContent = `${error.message} since ${since}. Is vtriune watch still running? Trying again …`;
  gone.hidden = false;
  link.textContent = "○ no answer";
  link.className = "link lost";
  if (whole) fresh(problem("No answer", "The server does not answer; this page goes on trying."));
}

function heading() {
  const crumbs = route.view?.crumbs?.(route) ?? [];
  document.title = [route.view?.title(route), "V-Triune"].filter(Boolean).join(" · ");
  document.getElementById("crumbs").replaceChildren(
    h("ol", {}, crumbs.map(([text, href]) => h("li", {}, href ? h("a", { href }, bdi(text)) : bdi(text)))),
  );
}

const home = () => (baked ? to(["run", baked.run]) : "#/");

document.getElementById("skip").onclick = (event) => {
  event.preventDefault();
  main.focus();
};
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (document.hidden) link.textContent = "paused";
  else refresh(main.dataset.view === "problem");
});
window.addEventListener("themechange", () => route.view?.themed?.());
window.addEventListener("hashchange", open);
listen(main, () => route.view?.keys?.(route) ?? {});
open();
