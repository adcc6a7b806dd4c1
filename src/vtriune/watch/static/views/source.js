// #/source/R/S: the curves of all figures of a source, of one run or of several (?runs=A&runs=B).

import { baked, get, Refused } from "../api.js";
import { curves, look, resize } from "../curves.js";
import { bdi, h, svg, to } from "../dom.js";
import { FIGURES, meaning, number } from "../format.js";
import { examples } from "./rollouts.js";

const settings = { weight: 0.8, log: false, wanted: "" }; // kept from source to source
let watcher = null; // tells which curves come into view
let redraw = () => {};

const chosen = (route) => [...new Set([route.parts[0], ...route.query.getAll("runs")])];

export const title = ({ parts: [run, source] }) => `${source} · ${run}`;
export const crumbs = ({ parts: [run, source] }) => [[run, to(["run", run])], [source, ""]];
export const runs = chosen;

export async function load(route, signal) {
  const [run, source] = route.parts;
  const names = chosen(route);
  const [all, grid, ...figures] = await Promise.all([
    get("/api/runs", {}, signal),
    get("/api/grid", { run, points: 60 }, signal),
    ...names.map((name) =>
      get("/api/figures", { run: name, source }, signal).catch((error) => without(error, name === run))),
  ]);
  const union = (split) => [...new Set(figures.flatMap((one) => one[split]))];
  const row = grid.sources.find((one) => one.source === source);
  return {
    run, source, names, all: all.runs.filter((one) => one.state !== "damaged"),
    sources: grid.sources.map((one) => one.source), tasks: grid.tasks, alerts: row?.alerts ?? [], task: row?.task ?? "",
    sections: sections(union("train"), union("eval")),
  };
}

/** A run that is laid over the first need not have its source. */
function without(error, isFirst) {
  if (isFirst || !(error instanceof Refused)) throw error;
  return { train: [], eval: [] };
}

/** Figures in their sections: what matters first, held-out scores, the rest, then what belongs to the step. */
function sections(train, held) {
  const main = FIGURES.filter((one) => train.includes(one));
  const rest = train.filter((one) => !main.includes(one)).sort();
  const timing = rest.filter((one) => one.startsWith("timing/"));
  const layers = rest.filter((one) => /^layer_/.test(one));
  const others = rest.filter((one) => !timing.includes(one) && !layers.includes(one));
  return [
    ["Training", "train", main],
    ["Held out", "eval", held.filter((one) => !one.startsWith("timing/")).sort()],
    ["More figures", "train", others],
    ["Layers", "train", layers],
    ["Timing", "train", timing],
  ].filter(([, , names]) => names.length);
}

export function draw(data, route) {
  return [
    h("div", { class: "head" },
      h("h1", {}, bdi(data.source)), h("span", { class: "note" }, bdi(data.task)),
      h("label", {}, "source ",
        h("select", { id: "source", onchange: (event) => jump(route, event.target.value) },
          [...data.sources, ...data.tasks].map((one) =>
            h("option", { value: one, selected: one === data.source }, one)))),
      h("span", { class: "links" },
        h("a", { href: to(["rollouts", data.run], filter(data.source)) },
          baked ? "Examples" : "Rollouts"))),
    data.alerts.length > 0 && h("ul", { class: "alerts" }, data.alerts.map((one) =>
      h("li", {}, h("span", { class: "alert" }, "▲ "),
        `step ${one.step}${one.until === null ? "" : `–${one.until}, over`}: `, bdi(one.message)))),
    h("div", { class: "controls" }, controls(), !baked && picker(data, route)),
    data.sections.length === 0 && h("p", { class: "empty" }, "No figures of this source yet."),
    data.sections.map(([name, split, figures]) =>
      h("section", { "data-key": name }, h("h2", {}, name),
        h("div", { class: "curves" }, figures.map((figure) => card(data, figure, split))))),
    baked && data.sources.includes(data.source) && examples(data.source),
  ];
}

function card(data, figure, split) {
  return h("figure", { "data-key": `${split}/${figure}`, "data-own": true, "data-figure": figure, "data-split": split },
    h("figcaption", {}, h("b", { title: meaning(figure) }, bdi(figure.replaceAll("_", " "))),
      h("span", { class: "readout" },
        data.names.map((_, at) => h("span", { class: `line-${at % 6}` })))),
    h("div", { class: "plot", tabindex: "0", role: "img", "aria-label": figure }));
}

function controls() {
  return h("form", { "data-own": true, onsubmit: (event) => event.preventDefault() },
    h("label", {}, "smoothing ",
      h("input", { type: "range", id: "smoothing", min: "0", max: "0.98", step: "0.02", value: settings.weight,
        oninput: (event) => change({ weight: Number(event.target.value) }) }),
      h("output", { for: "smoothing" }, settings.weight.toFixed(2))),
    h("label", {},
      h("input", { type: "checkbox", id: "log", checked: settings.log,
        onchange: (event) => change({ log: event.target.checked }) }),
      " log scale"),
    h("input", { type: "search", id: "figures-filter", "data-filter": true, value: settings.wanted,
      placeholder: "filter figures", "aria-label": "Filter figures",
      oninput: (event) => change({ wanted: event.target.value }) }));
}

function change(settled) {
  Object.assign(settings, settled);
  const output = document.querySelector(".controls output");
  if (output) output.textContent = settings.weight.toFixed(2);
  narrow();
  redraw();
}

/** Which runs are overlaid; also the legend. */
function picker(data, route) {
  const pick = (name, on) => {
    const runs = on ? [...data.names, name] : data.names.filter((one) => one !== name);
    location.hash = to(["source", ...route.parts], { runs: runs.filter((one) => one !== data.run) });
  };
  const sample = (at) => svg("svg", { class: `line-${at % 6}`, width: 26, height: 8, "aria-hidden": "true" },
    svg("path", { d: "M1 4h24", "stroke-dasharray": look(at).dash.join(" ") }));
  const others = data.all.filter((one) => !data.names.includes(one.name));
  return h("div", { class: "legend" },
    data.names.map((name, at) => h("span", { "data-key": name }, sample(at), bdi(name),
      at > 0 && h("button", {
        type: "button", class: "quiet", "aria-label": `Remove ${name}`, onclick: () => pick(name, false),
      }, "×"))),
    others.length > 0 && h("select", {
      id: "overlay", "data-key": "overlay", "aria-label": "Overlay another run",
      onchange: (event) => pick(event.target.value, true),
    },
      h("option", { value: "" }, "+ overlay a run"), others.map((one) => h("option", { value: one.name }, one.name))));
}

export function after(main, data, route, signal) {
  watcher?.disconnect();
  const shown = new Set();
  const show = async (node, again) => {
    const { figure, split } = node.dataset;
    if (again || !node.series) {
      try {
        const asked = { run: data.names, source: data.source, figure, split, points: 600 };
        const { series } = await get("/api/series", asked, signal);
        node.series = data.names.map((name) =>
          series.find((one) => one.run === name) ?? { run: name, steps: [], mean: [] });
      } catch (error) {
        if (error.name !== "AbortError") node.querySelector(".readout").textContent = error.message;
        return;
      }
    }
    if (node.isConnected) paint(node, data);
  };
  watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries)
      if (!isIntersecting) shown.delete(target);
      else if (!shown.has(target)) {
        shown.add(target);
        show(target, true);
      }
  }, { rootMargin: "200px" });
  for (const node of main.querySelectorAll("figure[data-figure]")) watcher.observe(node);
  redraw = () => shown.forEach((node) => show(node, false));
  narrow();
  const named = route.query.get("figure");
  if (named && main.dataset.jumped !== location.hash) {
    main.dataset.jumped = location.hash;
    const node = [...main.querySelectorAll("figure")].find((one) => one.dataset.figure === named);
    node?.scrollIntoView({ block: "center" });
    node?.classList.add("named");
  }
}

function paint(node, data) {
  const plot = node.querySelector(".plot");
  const last = (series) => series.mean.findLast((value) => value !== null) ?? null;
  const first = (series) => series.mean.find((value) => value !== null);
  const told = node.series.map((one) => `${one.run}: ${number(first(one))} → ${number(last(one))}`);
  const keys = `Arrow keys move along the curve${baked ? "" : ", Enter opens the rollouts"}.`;
  plot.setAttribute("aria-label", `${node.dataset.figure}, ${node.dataset.split}. ${told.join(", ")}. ${keys}`);
  const readout = ([step, values]) => {
    const told = node.querySelector(".readout");
    told.dataset.step = step === null ? "" : `step ${step}`;
    values.forEach((value, at) => (told.children[at].textContent = number(value)));
  };
  const latest = [null, node.series.map(last)];
  readout(latest);
  plot.onat = (values) => readout(values ?? latest);
  curves(plot, node.series, { ...settings, go: (step) => rolloutsAt(node, data, step) });
}

function rolloutsAt(node, data, step) {
  const near = node.series.findIndex((one) => one.steps.includes(step));
  const run = data.names[Math.max(0, near)];
  if (baked) return;
  const wanted = { split: node.dataset.split, ...filter(data.source), step_from: step, step_to: step };
  location.hash = to(["rollouts", run], wanted);
}

/** The rollouts of a source, of a task (`task:math`) or of all. */
function filter(source) {
  if (source === "all") return {};
  return source.startsWith("task:") ? { task: source.slice(5) } : { source };
}

function narrow() {
  for (const one of document.querySelectorAll("figure[data-figure]"))
    one.hidden = !one.dataset.figure.includes(settings.wanted.toLowerCase().trim().replaceAll(" ", "_"));
  for (const one of document.querySelectorAll("main section[data-key]"))
    one.hidden = ![...one.querySelectorAll("figure")].some((figure) => !figure.hidden);
}

function jump(route, source) {
  location.hash = to(["source", route.parts[0], source], { runs: route.query.getAll("runs") });
}

/** Draw the curves anew: the colours have changed. */
export const themed = () => redraw();

export function keys(route) {
  const step = (by) => {
    const select = document.getElementById("source");
    const next = select?.options[select.selectedIndex + by];
    if (next) jump(route, next.value);
  };
  return { "[": { run: () => step(-1), help: ["[, ]", "previous, next source"] }, "]": { run: () => step(1) } };
}

window.addEventListener("resize", () => resize(document));
