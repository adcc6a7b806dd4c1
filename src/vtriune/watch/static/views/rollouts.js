// #/rollouts/R?filters: the answers of a run, filtered, sorted and searched. In a report: its examples.

import { baked, get } from "../api.js";
import { bdi, h, heads, numbers, to } from "../dom.js";
import { count, number, signed } from "../format.js";

const LIMIT = 50;
const FILTERS = [
  "split", "source", "task", "decoding", "step_from", "step_to", "status", "correct", "finish", "reward_from",
  "reward_to", "text",
];

export const title = ({ parts: [run] }) => `Rollouts of ${run}`;
export const crumbs = ({ parts: [run] }) => [[run, to(["run", run])], [baked ? "examples" : "rollouts", ""]];
export const runs = ({ parts: [run] }) => [run];

/** The query as the API has it; the page's own defaults are the training split, newest first. */
function asked(route) {
  const query = Object.fromEntries([...FILTERS, "sort", "cursor"].map((name) => [name, route.query.get(name) ?? ""]));
  return { ...query, run: route.parts[0], split: query.split || "train", sort: query.sort || "-step", limit: LIMIT };
}

export async function load(route, signal, show) {
  if (baked) return {};
  const query = asked(route);
  const [grid, first] = await Promise.all([
    get("/api/grid", { run: query.run, points: 60 }, signal),
    get("/api/rollouts", query, signal),
  ]);
  const named = grid.sources.filter((one) => one.source !== "all");
  const tasks = [...new Set(named.map((one) => one.task).filter(Boolean))];
  const data = { ...first, query, tasks, sources: named.map((one) => one.source) };
  // A search gives what it found within a moment; it goes on here until the page is full.
  while (query.text && data.next && data.rows.length < LIMIT) {
    data.searching = true;
    show(data);
    const more = await get("/api/rollouts", { ...query, cursor: data.next, limit: LIMIT - data.rows.length }, signal);
    Object.assign(data, { ...more, rows: [...data.rows, ...more.rows] });
  }
  data.searching = false;
  return data;
}

/** Another query: the form says it at once, the list starts at its top. */
export function moved(main, route) {
  const fields = main.querySelector("form.filters")?.elements ?? [];
  for (const field of fields)
    if (field.name) field.value = route.query.get(field.name) ?? (field.name === "split" ? "train" : "");
  main.querySelector(".scroll")?.scrollTo(0, 0);
}

/** The server still reads the run's files: look again. */
export const unfinished = (data) => !baked && !data.query.text && data.searched.rows < data.searched.of;

export function draw(data, route) {
  if (baked) return [h("div", { class: "head" }, h("h1", {}, "Examples")), examples("")];
  const query = Object.fromEntries(route.query);
  const rest = { ...query, cursor: "" };
  return [
    h("div", { class: "head" }, h("h1", {}, "Rollouts"), h("span", { class: "note", role: "status" }, standing(data))),
    form(data, route, query),
    data.damaged.map((one) => h("p", { class: "problem" }, bdi(one))),
    data.rows.length > 0 && h("div", { class: "scroll tall", tabindex: "-1" }, h("table", { class: "rollouts" },
      heads(sorted("step", data, rest), "source", "answer", sorted("reward", data, rest), ["acc."], "verdict", ["adv."],
        sorted("tokens", data, rest), "ended"),
      h("tbody", {}, data.rows.map((one, at) => row(data.query.run, one, startsGroup(data.rows[at - 1], one)))))),
    data.rows.length === 0 && !data.searching && h("p", { class: "empty" }, data.searched.of === 0
      ? "No rollouts are stored for this run yet."
      : ["No rollout matches. ", h("a", { href: to(["rollouts", data.query.run]) }, "Clear the filters")]),
    h("p", { class: "pages" },
      query.cursor && h("a", { href: to(["rollouts", data.query.run], rest) }, "« first page"),
      data.next && !data.searching && h("a", {
        class: "item", href: to(["rollouts", data.query.run], { ...query, cursor: data.next }),
      }, "next page »")),
  ];
}

function standing(data) {
  const { matching, searched: { rows, of } } = data;
  const found = matching === null ? `${count(data.rows.length)} found so far` : `${count(matching)} match`;
  const goesOn = data.searching || !data.query.text ? " …" : "";
  return rows < of ? `${found}, ${count(rows)} of ${count(of)} looked at${goesOn}` : found;
}

const startsGroup = (before, one) => before && ["step", "group", "decoding"].some((name) => before[name] !== one[name]);

function row(run, one, isFirst) {
  return h("tr", {
    class: isFirst ? "first" : "", "data-key": [one.split, one.decoding, one.step, one.group, one.answer].join("/"),
    onclick: (event) => event.target.closest("a") || event.currentTarget.querySelector("a").click(),
  },
    numbers(count(one.step)),
    h("td", {}, bdi(one.source), one.decoding === "greedy" && h("small", {}, " greedy")),
    h("td", { class: "text" },
      h("a", { class: "item", href: groupLink(run, one, one.answer) }, bdi(one.response.trim() || "(empty)"))),
    numbers(number(one.reward), number(one.accuracy)),
    h("td", {}, verdict(one)),
    h("td", { class: `n ${mood(one.advantage)}` }, signed(one.advantage)),
    numbers(count(one.tokens)),
    h("td", {}, one.finish === "length" ? h("span", { class: "worse" }, "✂ cut") : one.finish));
}

const groupLink = (run, one, answer = "") =>
  to(["group", run, one.split, one.decoding, one.step, one.group], { answer });

/** A verdict as a sign and a word. */
export const verdict = ({ status, correct }) =>
  status !== "scored" ? h("span", { class: "alert" }, `▲ ${status}`)
    : correct === null ? h("span", { class: "note" }, "scored")
    : correct ? h("span", { class: "better" }, "✓ correct") : h("span", { class: "worse" }, "✗ wrong");

/** The colour of an advantage; its sign is written, too. */
export const mood = (advantage) => (advantage > 0 ? "better" : advantage < 0 ? "worse" : "");

function sorted(by, data, rest) {
  const { run, sort: now } = data.query;
  const next = now === `-${by}` ? by : `-${by}`;
  const order = now === `-${by}` ? "descending" : now === by ? "ascending" : "none";
  return h("th", { class: "n", "aria-sort": order },
    h("a", { id: `sort-${by}`, href: to(["rollouts", run], { ...rest, sort: next }) },
      by, { descending: " ↓", ascending: " ↑", none: "" }[order]));
}

function form(data, route, query) {
  const submit = (target) => {
    const wanted = Object.fromEntries(new FormData(target));
    if (wanted.split === "train") wanted.split = "";
    const sort = new URLSearchParams(location.hash.split("?")[1]).get("sort");
    location.hash = to(["rollouts", route.parts[0]], { ...wanted, sort });
  };
  const select = (name, label, options) => h("label", {}, label,
    h("select", { name, id: `filter-${name}` }, options.map(([value, text]) =>
      h("option", { value, selected: (query[name] ?? "") === value }, text))));
  const range = (name, label, step) => h("span", { class: "range", role: "group", "aria-label": label }, label,
    ["from", "to"].map((end) => h("input", {
      type: "number", step, name: `${name}_${end}`, id: `filter-${name}_${end}`, value: query[`${name}_${end}`],
      placeholder: end, "aria-label": `${label} ${end}`,
    })));
  const any = (names) => [["", "any"], ...names.map((one) => [one, one])];
  return h("form", {
    class: "filters", "data-own": true, role: "search",
    onsubmit: (event) => {
      event.preventDefault();
      submit(event.target);
    },
    onchange: (event) => submit(event.currentTarget),
  },
    h("label", { class: "wide" }, "text ", h("input", {
      type: "search", name: "text", id: "filter-text", "data-filter": true, value: query.text, maxlength: 500,
      placeholder: "in answer, prompt or gold",
    })),
    select("split", "split ", [["train", "training"], ["eval", "held out"]]),
    select("source", "source ", any(data.sources)), select("task", "task ", any(data.tasks)),
    select("decoding", "decoding ", any(["sampled", "greedy"])),
    select("status", "status ", any(["scored", "unscorable", "failed"])),
    select("correct", "correct ", [["", "any"], ["true", "correct"], ["false", "wrong"]]),
    select("finish", "ended ", [["", "any"], ["stop", "stop"], ["length", "cut"]]),
    range("step", "steps", 1), range("reward", "reward", "any"),
    h("a", { href: to(["rollouts", route.parts[0]]), class: "clear" }, "clear"));
}

/** The example groups of a report, of one source or of all. */
export function examples(source) {
  const shown = baked.examples.filter((one) => source === "" || source === "all" || one.source === source);
  if (!shown.length) return h("p", { class: "empty" }, "No example rollouts in this report.");
  const trained = shown.filter((one) => !one.first), heldOut = shown.filter((one) => one.first);
  const answer = (one) => h("td", { class: "n" },
    h("a", { class: "item", href: groupLink(baked.run, one) }, `${number(one.mean)} after ${count(one.step)} steps`));
  return h("section", {}, source && h("h2", {}, "Examples"),
    trained.length > 0 && h("div", { class: "scroll" }, h("table", { class: "rollouts" },
      heads("source", "group", ["step", "mean reward", "lowest", "highest"]),
      h("tbody", {}, trained.map((one) => h("tr", { "data-key": `${one.source}/${one.why}` },
        h("td", {}, bdi(one.source)),
        h("td", {}, h("a", { class: "item", href: groupLink(baked.run, one) }, one.why)),
        numbers(count(one.step), number(one.mean), number(one.low), number(one.high))))))),
    heldOut.length > 0 && h("div", { class: "scroll" }, h("table", { class: "rollouts heldout" },
      heads("source", "held-out sample", ["accuracy of the first greedy answer", "of the last"]),
      h("tbody", {}, heldOut.map((one) => h("tr", { "data-key": `${one.source}/${one.why}` },
        h("td", {}, bdi(one.source)), h("td", {}, one.why), answer(one.first), answer(one)))))));
}
