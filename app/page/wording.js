/** What is said about jobs and results. */

import { seedOf } from "./seeds.js";

/**
 * @typedef {import("./job.js").Job} Job
 * @typedef {import("./job.js").Result} Result
 */

/** How a job goes. @param {Job} job */
export function phase(job) {
  if (job.phase === "sent") return "Sending";
  if (job.phase === "queued") return queued(/** @type {any} */ (job.standing));
  const done = job.forming.reduce((sum, each) => sum + each.done, 0);
  const total = job.forming.length * Math.max(...job.forming.map((each) => each.total)); // those that wait have as many
  if (!total) return "Looking at the picture";
  if (done === total) return "Finishing";
  const left = job.secondsLeft;
  return `Step ${done} of ${total}${left === null ? "" : `, ${about(left)} left`}`;
}

/** @param {{position: number, seconds: number | null}} standing */
function queued({ position, seconds }) {
  const place = position ? `${position} before it` : "Next in line";
  if (seconds === null) return `${place}, as soon as the model is ready`;
  return `${place}, begins in ${about(seconds)}`;
}

/** @param {number} seconds */
function about(seconds) {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s`;
  return `about ${Math.round(seconds / 60)} min`;
}

/** A failure, and what to do. @param {import("./service.js").Failure & {title?: string, retryAfter?: number, status?: number}} failure */
export function failed(failure) {
  const detail = failure.status === 401 ? `${failure.message} There is a field for it above.` : failure.message;
  return { title: `${failure.title}.`, detail, retryAfter: failure.retryAfter };
}

/** @param {Result} result @param {number} i */
export function facts(result, i) {
  const { steps, negative_prompt: negative } = result.fields;
  const said = [`Seed ${seedOf(result.fields.random_seed, i)}`, `${result.seconds.toFixed(1)} s`];
  if (steps) said.push(`${steps} steps`);
  if (negative) said.push(`without ${negative}`);
  return said.join(" · ");
}

/** @param {Result} result @param {number} i */
export function fileName(result, i) {
  const words = result.fields.text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40);
  const suffix = result.images[i].type.replace("image/", "").replace("jpeg", "jpg");
  return `${words || "contour"}-${seedOf(result.fields.random_seed, i)}.${suffix}`;
}
