/** One request on its way: what is known of it at each moment. */

import { blobOf, Failure, generate } from "./service.js";

/**
 * `fields` is what is sent, `options` all settings that it stands for, those of the configuration included.
 * @typedef {{fields: Record<string, any>, options: Record<string, any>, image: Blob, edges: Blob | null}} Wanted
 * @typedef {{done: number, total: number, preview: string | null}} Forming
 * @typedef {Wanted & {id: number, images: Blob[], seconds: number, warnings: string[]}} Result
 */

let latest = 0; // id of a result

const TYPES = { "/9j/": "image/jpeg", iVBO: "image/png", UklG: "image/webp" }; // by how their base64 begins

export class Job extends EventTarget {
  /** @type {"sent" | "queued" | "running" | "done" | "failed" | "cancelled"} */
  phase = "sent";
  /** @type {Map<number, {position: number, seconds: number | null}>} places in the queue, by image */
  #standings = new Map();
  /** @type {Forming[]} */
  forming;
  /** @type {Result | null} */
  result = null;
  /** @type {Failure | null} */
  failure = null;
  began = performance.now();
  /** @type {number | null} when the first step was done, and how far all were then */
  #firstStep = null;
  #firstShare = 0;
  #controller = new AbortController();

  /** @param {Wanted} wanted */
  constructor(wanted) {
    super();
    this.wanted = wanted;
    const count = wanted.fields.number_of_images ?? 1;
    this.forming = Array.from({ length: count }, () => ({ done: 0, total: 0, preview: null }));
  }

  get live() {
    return ["sent", "queued", "running"].includes(this.phase);
  }

  /** The place of the image that starts first, as it is what the person waits for. */
  get standing() {
    return [...this.#standings.values()].sort((a, b) => a.position - b.position)[0] ?? null;
  }

  /** Seconds since it was sent. */
  get seconds() {
    return (performance.now() - this.began) / 1000;
  }

  /** How much of all steps is done, 0 to 1. */
  get share() {
    return this.forming.reduce((sum, { done, total }) => sum + (total ? done / total : 0), 0) / this.forming.length;
  }

  /** Seconds until it is done, by the pace so far; null while that says little. */
  get secondsLeft() {
    if (this.#firstStep === null || this.share - this.#firstShare < 0.1) return null;
    const pace = (performance.now() - this.#firstStep) / 1000 / (this.share - this.#firstShare);
    return pace * (1 - this.share);
  }

  /** Until it is done, failed or cancelled. Each change is a `change` event. */
  async run() {
    const { fields, image } = this.wanted;
    try {
      for await (const { name, data } of generate(fields, image, this.#controller.signal)) {
        this.#take(name, data);
        this.#changed();
      }
    } catch (error) {
      if (this.#controller.signal.aborted) this.phase = "cancelled";
      else {
        this.phase = "failed";
        this.failure = error instanceof Failure ? error : new Failure({ title: "The page failed", detail: String(error) });
      }
      this.#changed();
    }
  }

  /** Give it up; the service stops working on it. */
  cancel() {
    this.#controller.abort();
  }

  /** @param {string} name @param {any} data */
  #take(name, data) {
    const image = this.forming[data.image ?? 0];
    if (name === "queued" && this.phase !== "running") {
      this.phase = "queued";
      this.#standings.set(data.image ?? 0, data);
    } else if (name === "started") this.phase = "running";
    else if (name === "step") {
      this.phase = "running";
      Object.assign(image, { done: data.done, total: data.total });
      if (this.#firstStep === null) [this.#firstStep, this.#firstShare] = [performance.now(), this.share];
    } else if (name === "preview") image.preview = `data:image/jpeg;base64,${data.jpeg_base64}`;
    else if (name === "done") this.#finish(data);
  }

  /** @param {{output_image_base64: string, output_images_base64?: string[], warnings?: string[]}} answer */
  #finish(answer) {
    const files = answer.output_images_base64 ?? [answer.output_image_base64];
    const images = files.map((file) => blobOf(file, Reflect.get(TYPES, file.slice(0, 4)) ?? "image/jpeg"));
    this.phase = "done";
    latest = Math.max(Date.now(), latest + 1);
    this.result = { ...this.wanted, id: latest, images, seconds: this.seconds, warnings: answer.warnings ?? [] };
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
