/**
 * The service, as the page speaks to it. Every failure becomes a Failure, in words.
 *
 * All addresses are relative, so the page also works behind a proxy that serves it below a path of its own.
 */

import { events } from "./events.js";

const KEY = "contour-key";
const CHECK = "Check that you are online and that the server is running, then try again.";
const TIMEOUT = 30_000; // ms until an answer begins; only images may take longer
const NO_ANSWER = { title: "No answer from the server", detail: CHECK };
const LOST = { title: "The connection to the server was lost", detail: CHECK };

/**
 * What went wrong, for a person to read.
 * `status` is HTTP's, 0 where nothing answered; `retryAfter` in seconds, if the service said so.
 */
export class Failure extends Error {
  /** @param {{title: string, detail: string, status?: number, retryAfter?: number | null}} what */
  constructor({ title, detail, status = 0, retryAfter = null }) {
    super(detail);
    Object.assign(this, { title, detail, status, retryAfter });
  }
}

/** The API key, kept until the tab is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  /** @param {string} value */
  set: (value) => sessionStorage.setItem(KEY, value),
};

/** Whether it can make images now, and whether it is shutting down. @returns {Promise<{ready: boolean, draining: boolean}>} */
export async function readiness() {
  try {
    return await (await fetch("readyz", { signal: withTimeout() })).json(); // 503 has the same body
  } catch (error) {
    throw understood(error);
  }
}

/** The settings of the service: its model, options and limits. */
export async function settings() {
  return (await call("settings.json", { signal: withTimeout() })).json();
}

/**
 * The edges that the model will see, as a PNG.
 * @param {Blob} image
 * @param {Record<string, number>} thresholds those that are not as configured
 * @param {AbortSignal} signal
 * @returns {Promise<Blob>}
 */
export async function edges(image, thresholds, signal) {
  const query = new URLSearchParams(Object.entries(thresholds).map(([name, value]) => [name, String(value)]));
  const headers = { "Content-Type": image.type };
  return (await call(`edges?${query}`, { method: "POST", body: image, headers, signal: withTimeout(signal) })).blob();
}

/**
 * Ask for images; the events of their making, `done` or a Failure last.
 * @param {Record<string, unknown>} fields as the API names them
 * @param {Blob} image
 * @param {AbortSignal} signal aborting it cancels the work, too
 */
export async function* generate(fields, image, signal) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, String(value));
  body.append("embed_metadata", "full"); // so that a downloaded file says how it was made
  body.append("input_image", image, "image");
  const headers = { Accept: "text/event-stream" };
  const response = await call("generation/", { method: "POST", body, headers, signal });
  try {
    for await (const event of events(/** @type {any} */ (response.body))) {
      const data = JSON.parse(event.data);
      if (event.name === "error") throw new Failure(data);
      yield { name: event.name, data };
      if (event.name === "done") return;
    }
  } catch (error) {
    throw understood(error, LOST);
  }
  throw new Failure(LOST);
}

/**
 * Bytes of a base64 text as a blob.
 * @param {string} text
 * @param {string} type
 */
export function blobOf(text, type) {
  return new Blob([Uint8Array.from(atob(text), (character) => character.charCodeAt(0))], { type });
}

/**
 * @param {string} path
 * @param {RequestInit} options
 */
async function call(path, options) {
  const headers = new Headers(options.headers);
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw understood(error);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** A signal that also aborts after the timeout. @param {AbortSignal} [signal] */
function withTimeout(signal) {
  const controller = new AbortController();
  setTimeout(() => controller.abort(new Failure(NO_ANSWER)), TIMEOUT);
  signal?.addEventListener("abort", () => controller.abort(signal.reason));
  return controller.signal;
}

/** @param {Response} response */
async function refusal(response) {
  const problem = await response.json().catch(() => null);
  const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return new Failure({
    title: problem?.title ?? `The server answered ${response.status}`,
    detail: problem?.detail ?? "The server gave no reason. Its log may say more.",
    status: response.status,
    retryAfter: Number.isNaN(wait) ? null : wait,
  });
}

/** @param {unknown} error @param {{title: string, detail: string}} the failure to report if the network failed */
function understood(error, what = NO_ANSWER) {
  if (error instanceof Failure || (error instanceof DOMException && error.name === "AbortError")) return error;
  return new Failure(what);
}
