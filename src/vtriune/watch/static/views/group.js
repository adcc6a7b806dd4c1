// #/group/R/split/decoding/step/group: a picture with what was asked for and what was answered, and the G answers.

import { baked, get, picture } from "../api.js";
import { bdi, figures, h, svg, to } from "../dom.js";
import { count, number, signed } from "../format.js";
import { mood, verdict } from "./rollouts.js";

const WIDE = 1000; // units of the overlay's width
let shown = { key: "", answers: new Set(), gold: true }; // whose shapes are drawn
let groups = 0; // in the step of the shown group

export const title = ({ parts: [run, , , step, group] }) => `Group ${group} of step ${step} · ${run}`;
export function crumbs({ parts: [run, split, , step] }) {
  const beside = baked ? {} : { split: split === "train" ? "" : split, step_from: step, step_to: step };
  return [[run, to(["run", run])], [baked ? "examples" : "rollouts", to(["rollouts", run], beside)], ["group", ""]];
}
export const runs = () => []; // a group never changes: it is loaded once

export async function load(route, signal) {
  const [run, split, decoding, step, group] = route.parts;
  const data = await get("/api/group", { run, split, decoding, step, group }, signal);
  groups = data.groups;
  const key = location.hash;
  if (shown.key !== key) {
    const told = route.query.get("answer");
    const best = data.answers.reduce((a, b) => ((b.reward ?? -Infinity) > (a.reward ?? -Infinity) ? b : a));
    shown = { key, gold: true, answers: new Set([told !== null && told !== "" ? Number(told) : best.answer]) };
  }
  return { ...data, run };
}

export function draw(data, route) {
  const told = route.query.get("answer");
  const drawable = data.gold_shapes.length > 0 || data.answers.some((one) => one.shapes.length > 0);
  return [
    h("div", { class: "head" },
      h("h1", {}, bdi(data.source)),
      h("span", { class: "note" },
        bdi(data.task), ` · step ${count(data.step)} · group ${data.group + 1} of ${data.groups}`,
        ` · ${data.split === "train" ? "training" : "held out"}, ${data.decoding}`),
      h("span", { class: "links" },
        baked ? otherTime(data) : [neighbour(route, data, -1), neighbour(route, data, 1)])),
    h("div", { class: "group" },
      h("section", { class: "asked" },
        pictures(data),
        data.shapes_note && h("p", { class: "note" }, bdi(data.shapes_note)),
        drawable && legend(data),
        h("h2", {}, "Prompt"), passage("Prompt", data.prompt),
        h("h2", {}, "Gold"), passage("Gold", data.gold),
        h("h2", {}, "Reward"), figures(facts(data)),
        h("p", { class: "note" }, bdi(data.sample_id))),
      h("section", { class: "answers", "aria-label": "Answers" },
        data.answers.map((one) => card(one, told !== null && Number(told) === one.answer)))),
  ];
}

const facts = (data) => [
  ["verifier", data.verifier], ["preset", data.preset],
  ["accuracy weight", number(data.accuracy_weight)], ["format weight", number(data.format_weight)],
  ["progress", `${data.progress_step} / ${data.total_steps}`],
  ...Object.entries(data.parameters).map(([name, value]) =>
    [name, typeof value === "string" ? value : JSON.stringify(value)]),
];

function neighbour(route, data, by) {
  const href = beside(route, data.group + by);
  const inside = data.group + by >= 0 && data.group + by < data.groups;
  const text = by < 0 ? "‹ previous group" : "next group ›";
  return inside ? h("a", { href, id: by < 0 ? "previous" : "next" }, text) : h("span", { class: "note" }, text);
}

/** In a report, from a held-out sample's first answer to its last, and back. */
function otherTime(data) {
  const names = ["split", "decoding", "step", "group"];
  const pairs = baked.examples.flatMap((one) => (one.first ? [[one, one.first], [one.first, one]] : []));
  const [, other] = pairs.find(([here]) => names.every((name) => here[name] === data[name])) ?? [];
  const href = other && to(["group", baked.run, ...names.map((name) => other[name])]);
  return other && h("a", { href, id: "other-time" }, `the same sample after ${count(other.step)} steps`);
}

const beside = (route, group) => to(["group", ...route.parts.slice(0, 4), group]);

function pictures(data) {
  if (!data.images.length) return h("p", { class: "empty" }, "This question has no picture.");
  return data.images.map((image, at) => {
    const [width, height] = image.original;
    const source = picture(image.url);
    const crisp = width < 300 ? "small" : "";
    const shapes = [
      ...data.gold_shapes.filter((one) => one.image === at).map((one) => drawn(one, width, height, "gold")),
      ...data.answers.flatMap((answer) =>
        answer.shapes.filter((one) => one.image === at)
          .map((one) => drawn(one, width, height, "answered", answer.answer))),
    ];
    return h("figure", { class: "picture", "data-key": image.url },
      h("div", { style: { "aspect-ratio": `${width} / ${height}`, "max-width": `calc(26rem * ${width} / ${height})` } },
        source
          ? h("img", { src: source, alt: `Picture ${at + 1} of the question`, class: crisp, "data-picture": image.url })
          : h("p", { class: "empty" }, "The picture was left out of the report."),
        svg("svg", {
          viewBox: `0 0 ${WIDE} ${Math.round((WIDE * height) / width)}`, role: "img", "aria-label": told(data),
        }, shapes)),
      h("figcaption", { class: "note" }, bdi(image.where),
        ` · ${width} × ${height}, the model saw ${image.resized.join(" × ")}`));
  });
}

const told = (data) =>
  `${data.gold_shapes.length} gold shapes; ` +
  data.answers.map((one) => `answer ${one.answer + 1}: ${one.shapes.length} shapes`).join(", ");

/** One shape over a picture: solid for gold, dashed for what an answer said, with its label and IoU. */
function drawn(shape, width, height, kind, answer = null) {
  const high = (WIDE * height) / width;
  const scaled = (xy) => xy.map((share, place) => share * (place % 2 ? high : WIDE));
  const at = scaled(shape.xy);
  const xs = at.filter((_, place) => place % 2 === 0), ys = at.filter((_, place) => place % 2 === 1);
  const left = Math.min(...xs), top = Math.min(...ys), right = Math.max(...xs), bottom = Math.max(...ys);
  const body = shape.kind === "box" ? svg("rect", { x: left, y: top, width: right - left, height: bottom - top })
    : shape.kind === "point" ? svg("path", { d: `M${left - 16} ${top}h32M${left} ${top - 16}v32` })
    : shape.kind === "mask" ? svg("path", { class: "mask", d: shape.rings.map((ring) => `M${spaced(scaled(ring))}Z`).join("") })
    : svg("polygon", { points: spaced(at) });
  const name = shape.iou === null ? shape.label : `${shape.label} IoU ${shape.iou.toFixed(2)}`.trim();
  const below = kind === "answered"; // so that gold's words and an answer's don't lie on each other
  const y = below ? Math.min(high - 8, bottom + 34) : Math.max(30, top - 10);
  const late = left > 0.7 * WIDE;
  const hidden = kind === "gold" ? !shown.gold : !shown.answers.has(answer);
  return svg("g", { class: kind, "data-answer": answer, hidden },
    svg("title", {}, `${kind === "gold" ? "gold" : `answer ${answer + 1}`}: ${name || shape.kind}`), body,
    name && svg("text", { x: late ? right : left, y, "text-anchor": late ? "end" : "start" }, name.slice(0, 60)));
}

const spaced = (numbers) => numbers.map((one) => one.toFixed(1)).join(" ");

/** What the colours mean, and whose shapes are drawn. */
function legend(data) {
  const line = (kind) =>
    svg("svg", { class: `sample ${kind}`, width: 26, height: 8, "aria-hidden": "true" }, svg("path", { d: "M1 4h24" }));
  const toggle = (name, text, on, set) => {
    const onchange = (event) => {
      set(event.target.checked);
      reveal();
    };
    return h("label", {}, h("input", { type: "checkbox", id: `show-${name}`, checked: on, onchange }), text);
  };
  const able = data.answers.filter((one) => one.shapes.length);
  return h("fieldset", { class: "legend", "data-own": true },
    h("legend", { class: "unseen" }, "Shapes shown"),
    h("span", {}, line("gold"), toggle("gold", " gold", shown.gold, (on) => (shown.gold = on))),
    h("span", {}, line("answered"), " answers ", able.map((one) =>
      toggle(one.answer, ` ${one.answer + 1}`, shown.answers.has(one.answer),
        (on) => shown.answers[on ? "add" : "delete"](one.answer)))),
    able.length > 1 && h("button", { type: "button", class: "quiet", onclick: () => everyone(able) }, "all / none"));
}

function everyone(able) {
  const all = able.every((one) => shown.answers.has(one.answer));
  for (const one of able) {
    shown.answers[all ? "delete" : "add"](one.answer);
    document.getElementById(`show-${one.answer}`).checked = !all;
  }
  reveal();
}

/** Show the shapes of gold and of the chosen answers, and while `pointed` is pointed at its own, emphasized. */
function reveal(pointed = null) {
  for (const one of document.querySelectorAll(".picture g")) {
    const answer = one.dataset.answer === undefined ? null : Number(one.dataset.answer);
    one.toggleAttribute("hidden", answer === null ? !shown.gold : !shown.answers.has(answer) && answer !== pointed);
    one.classList.toggle("pointed", answer !== null && answer === pointed);
  }
}

function card(one, chosen) {
  const at = one.reasoning ? one.response.indexOf(one.reasoning) : -1;
  const rest = at < 0 ? one.response : one.response.slice(at + one.reasoning.length).replace(/^\s*<\/think>\s*/, "");
  const report = Object.entries(one.report).map(([name, value]) => [name, number(value)]);
  const point = () => reveal(one.answer), leave = () => reveal();
  return h("article", {
    class: chosen ? "item chosen" : "item", "data-key": one.answer, tabindex: "0",
    "aria-label": `Answer ${one.answer + 1}`, onmouseenter: point, onmouseleave: leave, onfocus: point, onblur: leave,
  },
    h("header", {},
      h("h2", {}, `Answer ${one.answer + 1}`), h("b", { class: "reward", title: "reward" }, number(one.reward)),
      verdict(one),
      h("span", { class: `advantage ${mood(one.advantage)}` }, `advantage ${signed(one.advantage)}`)),
    one.reason && h("p", { class: "problem" }, bdi(one.reason)),
    one.reasoning && h("details", {},
      h("summary", {}, `Reasoning, ${count(one.reasoning.length)} characters`), passage("Reasoning", one.reasoning)),
    passage(`Answer ${one.answer + 1}`, rest || "(empty)"),
    one.status === "scored" && figures([["accuracy", number(one.accuracy)], ["format", number(one.format)]]),
    report.length > 0 && h("details", { open: report.length <= 6 },
      h("summary", {}, `Report, ${report.length} figures`), figures(report)),
    h("footer", { class: "note" },
      `${count(one.tokens)} tokens, `,
      one.finish === "length" ? h("span", { class: "worse" }, "✂ cut at the limit") : `ended by ${one.finish}`,
      `, entropy ${number(one.entropy)}`));
}

/** Text as it was written, in a box that scrolls. */
const passage = (name, text) => h("pre", { class: "long", tabindex: "0", "aria-label": name }, text);

export function after(main) {
  for (const image of main.querySelectorAll("img[data-picture]")) {
    const fail = async () => {
      const reply = await fetch(image.dataset.picture).then((one) => one.json(), () => ({}));
      image.replaceWith(h("p", { class: "empty" }, bdi(reply.error ?? "The picture can't be had.")));
    };
    if (image.complete && !image.naturalWidth) fail();
    else image.onerror = fail;
  }
}

export function keys(route) {
  if (baked) return {};
  const go = (by) => () => {
    const group = Number(route.parts[4]) + by;
    if (group >= 0 && group < groups) location.hash = beside(route, group);
  };
  return {
    "[": { run: go(-1), help: ["[, ]", "previous, next group"] }, "]": { run: go(1) },
    ArrowLeft: { run: go(-1), help: ["←, →", "the same"] }, ArrowRight: { run: go(1) },
  };
}
