// Numbers, times and words as the page writes them, and what a figure's change means.

/** Figures in the order to show; which way is better: 1 up, -1 down, 0 neither. */
const DIRECTIONS = {
  reward: 1, accuracy: 1, correct: 1, format: 1, zero_spread: -1, truncated: -1, length: 0, length_incorrect: 0,
  entropy: 0, reflection: 0, iou_50: 1, mean_iou: 1, unscorable: -1, failed: -1,
};

export const FIGURES = Object.keys(DIRECTIONS);

/** What a figure measures, for tooltips. */
const MEANINGS = {
  reward: "mean reward R of the scored answers",
  accuracy: "mean accuracy part of the reward",
  correct: "share of answers that the verifier's own rule calls correct",
  format: "mean format part of the reward",
  zero_spread: "share of groups whose rewards are all equal: they teach nothing",
  truncated: "share of answers cut at the token limit",
  length: "mean tokens of an answer",
  length_incorrect: "mean tokens of incorrect answers",
  entropy: "mean entropy over the tokens, in nats",
  reflection: "share of answers with a reflection word",
  iou_50: "R_acc of preset paper at IoU 0.5 for detection, share of answers at IoU 0.5 for grounding",
  mean_iou: "mean IoU of boxes with gold",
  unscorable: "share of answers whose sample can't be judged",
  failed: "share of answers where our own side broke",
};

export const meaning = (figure) => (Object.hasOwn(MEANINGS, figure) ? MEANINGS[figure] : "");

/** About three digits: 0.456, 12.3, 4560, 2.1e-5; a dash for what does not exist. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.0005 || size >= 1e7) return value.toExponential(1).replace("-", "−").replace("+", "");
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return value.toFixed(digits).replace("-", "−");
}

/** With its sign. */
export const signed = (value) => (value > 0 ? "+" : "") + number(value);

/** A whole number with thin spaces between thousands. */
export const count = (value) => (value ?? 0).toString().replace(/\B(?=(\d{3})+$)/g, "\u2009");

/** One digit after the point, as scores of 0..100 are shown. */
export const score = (value, sign = false) =>
  value === null || value === undefined ? "–" : ((sign && value > 0 ? "+" : "") + value.toFixed(1)).replace("-", "−");

export function minutes(value) {
  if (value < 1) return `${Math.round(value * 60)} s`;
  if (value < 60) return `${value.toFixed(1)} min`;
  return `${Math.floor(value / 60)} h ${String(Math.floor(value % 60)).padStart(2, "0")} min`;
}

/** Local date and time to the minute. */
export function when(iso) {
  if (!iso) return "–";
  const date = new Date(iso);
  const two = (part) => String(part).padStart(2, "0");
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join("-");
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

/**
 * How a figure changed: an arrow, and whether that is better, worse or neither. The mean of the last quarter of its
 * points is compared with that of the first; what is no more than twice the noise of these means counts as none.
 */
export function change(figure, points) {
  const values = points.filter((one) => one !== null);
  if (!values.length) return { arrow: "", mood: "flat" };
  const quarter = Math.ceil(values.length / 4);
  const ends = [values.slice(0, quarter), values.slice(-quarter)];
  const sum = (list) => list.reduce((a, b) => a + b);
  const [first, last] = ends.map((end) => sum(end) / quarter);
  const squares = sum(ends[0].map((one) => (one - first) ** 2)) + sum(ends[1].map((one) => (one - last) ** 2));
  const noise = quarter > 1 ? Math.sqrt(squares / (quarter - 1) / quarter) : 0;
  const moved = last - first;
  const least = Math.max(2 * noise, 0.02 * Math.max(Math.abs(first), Math.abs(last)));
  if (Math.abs(moved) <= least) return { arrow: "→", mood: "flat" };
  const direction = (Object.hasOwn(DIRECTIONS, figure) ? DIRECTIONS[figure] : 0) * Math.sign(moved);
  return { arrow: moved > 0 ? "↗" : "↘", mood: direction > 0 ? "better" : direction < 0 ? "worse" : "moved" };
}

/** The sign and the word of a run's state: colour is never the only sign. */
export const STATES = {
  running: "▶", finished: "✓", stopped: "■", killed: "✕", failed: "✕", damaged: "!",
};
