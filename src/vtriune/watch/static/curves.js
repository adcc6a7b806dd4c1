// Curves with axes, drawn by uPlot: several runs of one figure, smoothed, each with its band of lowest and highest.

import { h } from "./dom.js";
import { number } from "./format.js";

const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 2], [1, 4]];

/** How line number `at` looks: a colour of the style sheet and a dash, since colour is never the only sign. */
export const look = (at) => ({ color: `--line-${at % 6}`, dash: DASHES[at % DASHES.length] });

/** A colour of the style sheet as a canvas understands it. */
function color(name, share = 1) {
  const mixed = `color-mix(in srgb, var(${name}) ${100 * share}%, transparent)`;
  const probe = document.body.appendChild(h("i", { style: { color: mixed } }));
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** Exponential moving average without the bias to its start; gaps stay gaps. `weight` 0 leaves all as it is. */
export function smooth(values, weight) {
  let sum = 0, mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

/** For uPlot: x, then (low, high, as it is, smoothed) for every series. Values that a log axis can't show are gaps. */
function table(series, weight, log) {
  const fit = (values) => values.map((value) => (value === null || (log && value <= 0) ? null : value));
  const tables = series.map(({ steps, mean, low, high }) => {
    const banded = low && high && low.some((value, at) => value !== high[at]);
    const none = steps.map(() => null);
    const band = banded ? [fit(low), fit(high)] : [none, none];
    return [steps, ...band, weight ? fit(mean) : none, fit(smooth(mean, weight))];
  });
  return tables.length === 1 ? tables[0] : uPlot.join(tables);
}

function options(node, series, log, go) {
  const grid = { stroke: color("--hairline"), width: 1 };
  const axis = { stroke: color("--soft"), grid, ticks: grid, font: "11px system-ui, sans-serif" };
  const hide = { points: { show: false } };
  const lines = series.flatMap((one, at) => {
    const { color: name, dash } = look(at);
    const points = { show: one.steps.length < 2, size: 6, fill: color(name) };
    const weak = { stroke: color(name, 0.35), width: 1, spanGaps: true, ...hide };
    return [hide, hide, weak, { stroke: color(name), width: 1.75, dash, spanGaps: true, points }];
  });
  return {
    width: node.clientWidth,
    height: node.clientHeight,
    legend: { show: false },
    cursor: { sync: { key: "step" }, drag: { x: true, y: false }, points: { size: 5 } },
    scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
    axes: [
      { ...axis, size: 26 },
      { ...axis, size: 48, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : number(tick))) },
    ],
    series: [{}, ...lines],
    bands: series.map((_, at) => ({ series: [4 * at + 2, 4 * at + 1], fill: color(look(at).color, 0.16) })),
    hooks: {
      setCursor: [(plot) => node.onat?.(values(plot, series))],
      ready: [(plot) => bind(plot, node, go)],
    },
  };
}

/** What the curves say at the cursor: [step, [value of each series]]; null beside the curves. */
function values(plot, series) {
  const at = plot.cursor.idx;
  if (at === null || at === undefined) return null;
  return [plot.data[0][at], series.map((_, one) => plot.data[4 * one + 4][at] ?? null)];
}

/** A click, or Enter after the arrow keys, goes to the point under the cursor. */
function bind(plot, node, go) {
  let pressed = 0;
  plot.over.addEventListener("mousedown", (event) => (pressed = event.clientX));
  plot.over.addEventListener("click", (event) => {
    if (Math.abs(event.clientX - pressed) < 4 && plot.cursor.idx !== null) go(plot.data[0][plot.cursor.idx]);
  });
  node.onkeydown = (event) => {
    const steps = plot.data[0];
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (by) {
      const at = Math.max(0, Math.min(steps.length - 1, (plot.cursor.idx ?? (by < 0 ? steps.length : -1)) + by));
      plot.setCursor({ left: plot.valToPos(steps[at], "x"), top: plot.over.clientHeight / 2 });
    } else if (event.key === "Enter" && plot.cursor.idx !== null) go(steps[plot.cursor.idx]);
    else return;
    event.preventDefault();
  };
}

const plots = new WeakMap(); // node -> {plot, kind}

/**
 * Draw series of {run, steps, mean, low, high} into `node`, or bring its curves up to date. `go(step)` is called for
 * the point that the user chose; `node.onat([step, values])`, or with null, for what stands under the cursor.
 */
export function curves(node, series, { weight, log, go }) {
  const drawn = plots.get(node);
  const data = table(series, weight, log);
  const kind = `${series.map((one) => one.run).join("\n")}|${log}|${document.documentElement.dataset.theme}`;
  if (drawn?.kind === kind) {
    drawn.plot.setData(data);
    return;
  }
  drawn?.plot.destroy();
  const plot = new uPlot(options(node, series, log, go), data, node);
  plots.set(node, { plot, kind });
}

/** Fit all curves inside `main` to the room they have now. */
export function resize(main) {
  for (const node of main.querySelectorAll(".plot"))
    plots.get(node)?.plot.setSize({ width: node.clientWidth, height: node.clientHeight });
}
