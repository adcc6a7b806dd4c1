// #/: the list of runs, to open one or to compare several.

import { get } from "../api.js";
import { bdi, h, heads, numbers, to } from "../dom.js";
import { count, minutes, number, STATES, when } from "../format.js";

const chosen = new Set(); // names of the runs to compare
let wanted = ""; // what the filter says

export const title = () => "Runs";
export const load = (route, signal) => get("/api/runs", {}, signal);

export function draw(data) {
  if (!data.runs.length)
    return [
      h("section", { class: "empty" },
        h("h1", {}, "No runs in ", bdi(data.root), " yet"),
        h("p", {}, "Start one, and it appears here by itself:"),
        h("pre", {}, "make demo"),
        h("p", {}, "or for a recipe of your own"),
        h("pre", {}, "vtriune train my_recipe.yaml")),
    ];
  return [
    h("div", { class: "head" },
      h("h1", {}, "Runs"),
      h("span", { class: "note" }, "in ", bdi(data.root)),
      h("input", {
        type: "search", id: "runs-filter", "data-filter": true, "data-own": true, placeholder: "filter by name",
        "aria-label": "Filter runs by name", value: wanted, oninput: (event) => narrow(event.target.value),
      }),
      h("button", { type: "button", id: "compare", onclick: compare }, "Compare curves")),
    h("div", { class: "scroll" },
      h("table", { class: "runs" },
        heads(h("th", {}, h("span", { class: "unseen" }, "compare")), "run", "state", "progress",
          ["mean reward", "time", "alerts"], "started"),
        h("tbody", {}, data.runs.map(row)))),
  ];
}

export const after = () => {
  narrow(wanted);
  offer();
};

function row(run) {
  const share = run.total_steps ? Math.min(1, run.step / run.total_steps) : 0;
  const sound = run.state !== "damaged";
  return h("tr", { "data-key": run.name, class: sound ? "" : "damaged" },
    h("td", {}, sound && h("input", {
      type: "checkbox", "data-run": run.name, "aria-label": `Compare ${run.name}`, checked: chosen.has(run.name),
      onchange: (event) => {
        chosen[event.target.checked ? "add" : "delete"](run.name);
        offer();
      },
    })),
    h("td", {}, h("a", { class: "item", href: to(["run", run.name]) }, bdi(run.name)),
      run.problem && h("p", { class: "problem" }, bdi(run.problem))),
    h("td", {}, state(run.state)),
    h("td", {}, sound && progress(run, share)),
    numbers(number(run.reward), sound ? minutes(run.minutes) : "–",
      run.alerts ? h("span", { class: "alert" }, `▲ ${run.alerts}`) : "–"),
    h("td", { class: "when" }, when(run.started)));
}

/** A run's state as a sign and a word. */
export const state = (name) => h("span", { class: `state ${name}` }, `${STATES[name] ?? "?"} ${name}`);

/** How far a run has come, as a bar and in numbers. */
export const progress = (run, share) =>
  h("span", { class: "progress" },
    h("span", { class: "track", "aria-hidden": "true" }, h("span", { style: { width: `${100 * share}%` } })),
    `${count(run.step)} / ${count(run.total_steps)}`);

function narrow(text) {
  wanted = text;
  for (const one of document.querySelectorAll("table.runs tbody tr"))
    one.hidden = !one.dataset.key.toLowerCase().includes(text.toLowerCase());
}

function offer() {
  const button = document.getElementById("compare");
  if (!button) return;
  button.disabled = chosen.size < 2;
  button.title = chosen.size < 2 ? "Tick two runs or more" : "";
}

function compare() {
  const runs = [...document.querySelectorAll("table.runs input:checked")].map((one) => one.dataset.run);
  if (runs.length) location.hash = to(["source", runs[0], "all"], { runs });
}
