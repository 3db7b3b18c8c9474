/** Texts about jobs and results. */

import { seedOf } from "./seeds.js";

/**
 * @typedef {import("./job.js").Job} Job
 * @typedef {import("./job.js").Result} Result
 */

/** The state of a job. @param {Job} job */
export function phase(job) {
  if (job.phase === "sent") return "Sending";
  if (job.phase === "queued") return queued(/** @type {any} */ (job.queuePosition));
  const done = job.forming.reduce((sum, each) => sum + each.done, 0);
  const total = job.forming.length * Math.max(...job.forming.map((each) => each.total)); // waiting images have as many steps
  if (!total) return "Starting";
  if (done === total) return "Finishing";
  const left = job.secondsLeft;
  return `Step ${done} of ${total}${left === null ? "" : `, ${about(left)} left`}`;
}

/** @param {{position: number, seconds: number | null}} queuePosition */
function queued({ position, seconds }) {
  const place = position ? `Waiting, ${position} ahead` : "Next in line";
  if (seconds === null) return `${place}; starts when the model has loaded`;
  return `${place}; starts in ${about(seconds)}`;
}

/** @param {number} seconds */
function about(seconds) {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s`;
  return `about ${Math.round(seconds / 60)} min`;
}

/** A failure, and what to do. @param {import("./service.js").Failure & {title?: string, retryAfter?: number, status?: number}} failure */
export function failed(failure) {
  const title = `${failure.title}.`;
  const message = failure.message.startsWith(title) ? failure.message.slice(title.length).trim() : failure.message;
  const detail = failure.status === 401 ? `${message} Enter it at the top of the page.` : message;
  return { title, detail, retryAfter: failure.retryAfter };
}

/** A short name for a failure, where there is little room. @param {any} failure */
export function briefly(failure) {
  switch (failure.status) {
    case 0: return "No answer from the server";
    case 401: return "API key needed";
    case 429: return "Too many requests";
    case 503: return "The server is busy";
    default: return "The edges can't be shown";
  }
}

/** What made image `i` of a result: names and values. @param {Result} result @param {number} i @returns {[string, string][]} */
export function facts(result, i) {
  // Results of an earlier version have no options: only the fields that were sent are known.
  const { options = result.fields } = result;
  const line = options.control_image === "edges";
  const all = /** @type {[string, any][]} */ ([
    ["Seed", seedOf(result.fields.random_seed, i)],
    ["Steps", options.steps],
    ["Guidance", options.guidance_scale],
    ["Control", options.control_scale],
    ["Temperature", options.temperature],
    ["Edges", line ? "the image itself" : thresholds(options)],
    ["Negative prompt", options.negative_prompt?.trim()],
    ["Time", `${result.seconds.toFixed(1)} s`],
  ]);
  return all.flatMap(([name, value]) => (value === undefined || value === "" ? [] : [[name, String(value)]]));
}

/** @param {Record<string, any>} options */
function thresholds({ canny_low: low, canny_high: high }) {
  return low === undefined || high === undefined ? undefined : `${low} to ${high}`;
}

/** @param {Result} result @param {number} i */
export function fileName(result, i) {
  const words = result.fields.text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40);
  const suffix = result.images[i].type.replace("image/", "").replace("jpeg", "jpg");
  return `${words || "contour"}-${seedOf(result.fields.random_seed, i)}.${suffix}`;
}
