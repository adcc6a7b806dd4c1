// Asking the server, or in a report the answers that were baked into the file. Nothing is drawn here.

const block = document.getElementById("baked");

/** In a report: {run, made, answers, images, examples}; null on a live page. */
export const baked = block ? JSON.parse(block.textContent) : null;

/** The server does not answer at all. */
export class Unreachable extends Error {}

/** The server's own sentence about what it can't give. */
export class Refused extends Error {}

const flat = (parameters) =>
  Object.entries(parameters).flatMap(([name, value]) =>
    [value].flat().filter((one) => one !== "" && one !== null && one !== undefined).map((one) => [name, String(one)]),
  );

/** One of the API's answers. Raises Unreachable, Refused, or AbortError when `signal` says that nobody waits. */
export async function get(path, parameters = {}, signal = undefined) {
  const pairs = flat(parameters);
  if (baked) {
    // A report has chosen its own number of points.
    const told = pairs.filter(([name]) => name !== "points").map(([name, value]) => `${name}=${value}`);
    const answer = baked.answers[[path, ...told.sort()].join("\n")];
    if (answer === undefined) throw new Refused("This is not part of the report; ask for the run folder.");
    return answer;
  }
  let reply, body;
  try {
    reply = await fetch(`${path}?${new URLSearchParams(pairs)}`, { signal });
    body = await reply.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The server does not answer");
  }
  let answer;
  try {
    answer = JSON.parse(body);
  } catch {
    throw new Unreachable(`The server answered ${reply.status} without JSON`);
  }
  if (!reply.ok) throw new Refused(answer.error ?? `The server answered ${reply.status}`);
  return answer;
}

/** Where a picture is: an address of the server, or in a report the picture itself. */
export const picture = (url) => (baked ? (baked.images[url] ?? null) : url);
