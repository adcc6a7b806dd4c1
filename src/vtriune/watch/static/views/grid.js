// #/run/R: a run at a glance: sources x figures, alerts, held-out scores, figures of the last step.

import { baked, get } from "../api.js";
import { bdi, figures, h, heads, numbers, to } from "../dom.js";
import { change, count, meaning, minutes, number, score, when } from "../format.js";
import { dumbbell, sparkline } from "../sparkline.js";
import { progress, state } from "./runs.js";

let wanted = "";

export const title = ({ parts: [run] }) => run;
export const crumbs = ({ parts: [run] }) => [[run, ""]];
export const runs = ({ parts: [run] }) => [run];
export const load = ({ parts: [run] }, signal) => get("/api/grid", { run, points: 60 }, signal);

/** The server still reads a big file: look again. */
export const unfinished = (data) => !baked && data.read.bytes < data.read.of;

export function draw(data) {
  const { run } = data;
  const alerts = data.sources.flatMap((one) => one.alerts);
  return [
    h("div", { class: "head" },
      h("h1", {}, bdi(run.name)), state(run.state), progress(run, run.total_steps ? run.step / run.total_steps : 0),
      h("span", { class: "note" }, `${minutes(run.minutes)} · started ${when(run.started)}`),
      h("span", { class: "links" },
        h("a", { href: to(["source", run.name, "all"]) }, "Curves"),
        h("a", { href: to(["rollouts", run.name]) }, baked ? "Examples" : "Rollouts"))),
    [run.problem, ...data.problems].filter(Boolean).map((one) => h("p", { class: "problem", role: "alert" }, bdi(one))),
    unfinished(data) && h("p", { class: "note", role: "status" },
      `Reading metrics.jsonl: ${Math.floor((100 * data.read.bytes) / data.read.of)} %`),
    alerts.length > 0 && alertList(run.name, alerts),
    data.figures.length > 0 ? table(data)
      : h("p", { class: "empty" }, "No training step yet. This page follows the run by itself."),
    data.evaluation && evaluation(data.evaluation, run.name),
    steps(data),
  ];
}

export const after = () => narrow(wanted);

function table(data) {
  return h("section", {},
    h("div", { class: "head" }, h("h2", {}, "Sources"),
      h("input", {
        type: "search", id: "grid-filter", "data-filter": true, "data-own": true, value: wanted,
        placeholder: "filter by source or task", "aria-label": "Filter by source or task",
        oninput: (event) => narrow(event.target.value),
      }),
      h("span", { class: "note" },
        "The number is the latest step's; the arrow compares the last quarter with the first: ",
        h("span", { class: "better" }, "better"), ", ", h("span", { class: "worse" }, "worse"),
        ", → no more than noise")),
    h("div", { class: "scroll tall", tabindex: "-1" },
      h("table", { class: "grid" },
        heads("source", ...data.figures.map((figure) =>
          h("th", { class: "n", title: meaning(figure) }, figure.replaceAll("_", " ")))),
        h("tbody", {}, data.sources.map((one) => row(data, one))))));
}

function row(data, one) {
  const page = (query) => to(["source", data.run.name, one.source], query);
  const told = one.alerts.map(sentence);
  return h("tr", {
    "data-key": one.source, "data-names": `${one.source} ${one.task}`, class: one.source === "all" ? "total" : "",
  },
    h("th", { scope: "row" },
      h("a", { class: "item", href: page() }, bdi(one.source)),
      told.length > 0 &&
        h("span", { class: "alert", title: told.join("\n"), "aria-label": told.join("; ") }, ` ▲ ${told.length}`),
      h("small", {}, bdi(one.task))),
    data.figures.map((figure) => {
      const cell = one.cells[figure];
      if (!cell) return h("td", { class: "n" }, "–");
      const { arrow, mood } = change(figure, cell.points);
      const marks = one.alerts.filter((alert) => Object.hasOwn(CONCERNS, alert.kind) && CONCERNS[alert.kind] === figure);
      const course = `${figure}: ${number(cell.first)} → ${number(cell.last)}`;
      return h("td", { class: "n", "data-figure": figure },
        h("a", { class: "cell", tabindex: "-1", href: page({ figure }), title: course },
          sparkline(figure, cell, marks.map((alert) => alert.step / Math.max(1, data.run.step))),
          h("span", { class: mood }, number(cell.last), h("i", { "aria-hidden": "true" }, arrow))));
    }));
}

const sentence = (alert) =>
  `step ${alert.step}${alert.until === null ? " on" : ` to ${alert.until}`}: ${alert.message}`;

/** The figure that an alert of a kind speaks of. */
const CONCERNS = {
  reward_collapsed: "reward", no_spread: "zero_spread", truncation_rising: "truncated",
  incorrect_longer: "length_incorrect", entropy_to_zero: "entropy", entropy_rising: "entropy",
  failed: "failed", unscorable: "unscorable",
};

function alertList(run, alerts) {
  const open = alerts.filter((one) => one.until === null);
  return h("section", { class: "alerts" },
    h("details", { open: open.length > 0 && open.length <= 6, "data-key": "alerts" },
      h("summary", {},
        h("span", { class: "alert" }, `▲ ${alerts.length} ${alerts.length === 1 ? "alert" : "alerts"}`),
        `, ${open.length} still on`),
      h("ul", {}, alerts.sort((a, b) => b.step - a.step).map((one) => h("li", {},
        h("span", { class: "when" }, `step ${one.step}${one.until === null ? "" : `–${one.until}`}`), " ",
        h("a", { href: to(["source", run, one.source]) }, bdi(one.source)), " ",
        bdi(one.message), one.until === null ? "" : h("span", { class: "note" }, " over"))))));
}

function evaluation(data, run) {
  const cells = (row) => [
    numbers(count(row.n), [score(row.before), error(row.before_se)], [score(row.after), error(row.after_se)]),
    h("td", {}, dumbbell(row.before, row.after)),
    h("td", { class: `n ${row.gain > 0 ? "better" : row.gain < 0 ? "worse" : ""}` },
      score(row.gain, true), error(row.gain_se)),
    numbers(score(row.greedy_before), score(row.greedy_after)),
  ];
  return h("section", {},
    h("div", { class: "head" }, h("h2", {}, "Held out"),
      h("span", { class: "note" },
        `step ${data.first_step} → ${data.last_step}; 100 × mean accuracy at temperature 1, ± one standard error`)),
    h("div", { class: "scroll" }, h("table", { class: "evaluation" },
      heads("task", "source", ["n", "before", "after"], "0 – 100", ["gain", "greedy before", "greedy after"]),
      h("tbody", {}, data.rows.map((one) => h("tr", { "data-key": one.source },
        h("td", {}, bdi(one.task)),
        h("td", {}, h("a", { href: to(["source", run, one.source], { figure: "score" }) }, bdi(one.source))),
        cells(one)))),
      data.mean && h("tfoot", {}, h("tr", {}, h("td", { colspan: 2 }, "mean over tasks"), cells(data.mean))))));
}

const error = (value) => value !== null && value !== undefined && h("small", {}, ` ±${score(value)}`);

function steps(data) {
  const last = Object.entries(data.step_figures).map(([name, value]) => [name, number(value)]);
  return h("section", {},
    h("h2", {}, last.length ? "Last step" : "Set aside"),
    figures([...last, ["samples quarantined", count(data.quarantined)], ["updates skipped", count(data.skipped)]]));
}

function narrow(text) {
  wanted = text;
  for (const one of document.querySelectorAll("table.grid tbody tr"))
    one.hidden = !one.dataset.names.toLowerCase().includes(text.toLowerCase());
}
