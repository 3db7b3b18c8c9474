/** A request that was sent, and its progress. */

import { blobOf, Failure, generate } from "./service.js";

/**
 * `fields` are sent; `options` are all settings in effect, including those of the configuration.
 * @typedef {{fields: Record<string, any>, options: Record<string, any>, image: Blob, edges: Blob | null}} GenerationParams
 * @typedef {{done: number, total: number, preview: string | null}} Forming
 * @typedef {GenerationParams & {id: number, images: Blob[], seconds: number, warnings: string[]}} Result
 */

let latest = 0; // id of a result

const TYPES = { "/9j/": "image/jpeg", iVBO: "image/png", UklG: "image/webp" }; // by how their base64 begins

export class Job extends EventTarget {
  /** @type {"sent" | "queued" | "running" | "done" | "failed" | "cancelled"} */
  phase = "sent";
  /** @type {Map<number, {position: number, seconds: number | null}>} places in the queue, by image */
  #queuePositions = new Map();
  /** @type {Forming[]} */
  forming;
  /** @type {Result | null} */
  result = null;
  /** @type {Failure | null} */
  failure = null;
  began = performance.now();
  /** @type {number | null} when the first step was done, and the share of all steps done then */
  #firstStep = null;
  #firstShare = 0;
  #controller = new AbortController();

  /** @param {GenerationParams} params */
  constructor(params) {
    super();
    this.params = params;
    const count = params.fields.number_of_images ?? 1;
    this.forming = Array.from({ length: count }, () => ({ done: 0, total: 0, preview: null }));
  }

  get live() {
    return ["sent", "queued", "running"].includes(this.phase);
  }

  /** The queue position of the image that starts first, as the person waits for that one. */
  get queuePosition() {
    return [...this.#queuePositions.values()].sort((a, b) => a.position - b.position)[0] ?? null;
  }

  /** Seconds since it was sent. */
  get seconds() {
    return (performance.now() - this.began) / 1000;
  }

  /** The share of all steps that are done, 0 to 1. */
  get share() {
    return this.forming.reduce((sum, { done, total }) => sum + (total ? done / total : 0), 0) / this.forming.length;
  }

  /** Estimated seconds until it is done; null until enough steps are done to estimate. */
  get secondsLeft() {
    if (this.#firstStep === null || this.share - this.#firstShare < 0.1) return null;
    const seconds = (performance.now() - this.#firstStep) / 1000;
    return (seconds / (this.share - this.#firstShare)) * (1 - this.share);
  }

  /** Run it until it is done, failed or cancelled. Each change dispatches a `change` event. */
  async run() {
    const { fields, image } = this.params;
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

  /** Cancel it: the service stops working on it. */
  cancel() {
    this.#controller.abort();
  }

  /** @param {string} name @param {any} data */
  #take(name, data) {
    const image = this.forming[data.image ?? 0];
    if (name === "queued" && this.phase !== "running") {
      this.phase = "queued";
      this.#queuePositions.set(data.image ?? 0, data);
    } else if (name === "started") this.phase = "running";
    else if (name === "step") {
      this.phase = "running";
      Object.assign(image, { done: data.done, total: data.total });
      if (this.#firstStep === null) [this.#firstStep, this.#firstShare] = [performance.now(), this.share];
    } else if (name === "preview") image.preview = `data:image/jpeg;base64,${data.jpeg_base64}`;
    else if (name === "done") this.#finish(data);
  }

  /** @param {{output_image_base64: string, output_images_base64?: string[], warnings?: string[], canny_low?: number, canny_high?: number}} answer */
  #finish(answer) {
    const files = answer.output_images_base64 ?? [answer.output_image_base64];
    const images = files.map((file) => blobOf(file, Reflect.get(TYPES, file.slice(0, 4)) ?? "image/jpeg"));
    this.phase = "done";
    latest = Math.max(Date.now(), latest + 1);
    const { warnings = [], canny_low, canny_high } = answer;
    const { options: asked } = this.params;
    const options = canny_low === undefined ? asked : { ...asked, canny_low, canny_high };
    this.result = { ...this.params, options, id: latest, images, seconds: this.seconds, warnings };
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
