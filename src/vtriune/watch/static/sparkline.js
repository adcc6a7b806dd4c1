// Small drawings inside tables: a figure's course, and a score before and after. Curves with axes are in curves.js.

import { svg } from "./dom.js";
import { change, number } from "./format.js";

const WIDTH = 60, HEIGHT = 20, EDGE = 2.5;

/**
 * The course of a figure as a line coloured by its change, with a mark at every alert: `marks` are shares of the width.
 * null points are gaps.
 */
export function sparkline(figure, { first, last, points }, marks = []) {
  const values = points.filter((one) => one !== null);
  const label = `${figure}: ${number(first)} → ${number(last)}` + (marks.length ? `, ${marks.length} alerts` : "");
  const low = Math.min(...values), high = Math.max(...values);
  const x = (at) => EDGE + (at / Math.max(1, points.length - 1)) * (WIDTH - 2 * EDGE);
  const y = (value) => (high > low ? HEIGHT - EDGE - ((value - low) / (high - low)) * (HEIGHT - 2 * EDGE) : HEIGHT / 2);
  let path = "", pen = "M", end = null;
  points.forEach((value, at) => {
    if (value !== null) path += `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = value === null ? "M" : "L";
    if (value !== null) end = [x(at), y(value)];
  });
  return svg(
    "svg",
    {
      class: `spark ${change(figure, points).mood}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT,
      role: "img", "aria-label": label,
    },
    marks.map((share) => svg("path", { class: "mark", d: `M${EDGE + share * (WIDTH - 2 * EDGE)} 0v${HEIGHT}` })),
    svg("path", { d: path, class: "course" }),
    end && svg("circle", { cx: end[0].toFixed(1), cy: end[1].toFixed(1), r: 1.8 }),
  );
}

/** A score of 0..100 before (ring) and after (dot). */
export function dumbbell(before, after) {
  const x = (value) => (6 + (value / 100) * 108).toFixed(1);
  return svg(
    "svg",
    {
      class: `dumbbell ${after >= before ? "better" : "worse"}`, viewBox: "0 0 120 14", width: 120, height: 14,
      "aria-hidden": "true",
    },
    svg("path", { class: "scale", d: "M6 7h108" }),
    svg("path", { class: "course", d: `M${x(before)} 7H${x(after)}` }),
    svg("circle", { class: "ring", cx: x(before), cy: 7, r: 3.5 }),
    svg("circle", { cx: x(after), cy: 7, r: 4 }),
  );
}
