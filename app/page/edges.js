/** The edges of the picture, kept up to date. */

import { byId, show } from "./dom.js";
import { edges } from "./service.js";

const PAUSE = 150; // ms that a slider must rest

export class Edges {
  /** @type {Blob | null} of the picture and the thresholds as they are */
  current = null;
  #image = byId("edges-image");
  #frame = byId("edges-frame");
  #asked = new AbortController();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #failed;

  /** @param {(failure: any) => void} failed is told of a failure, or null when there is none any more */
  constructor(failed) {
    this.#failed = failed;
  }

  /**
   * Find the edges anew, when the hand rests.
   * @param {Blob | null} picture
   * @param {{canny_low: number, canny_high: number}} thresholds
   * @param {number} pause ms
   */
  update(picture, thresholds, pause = PAUSE) {
    clearTimeout(this.#timer);
    this.#asked.abort();
    this.#asked = new AbortController();
    this.current = null;
    if (!picture) return this.#show(null);
    this.#frame.setAttribute("aria-busy", "true");
    const { signal } = this.#asked;
    this.#timer = setTimeout(() => this.#find(picture, thresholds, signal), pause);
  }

  /** @param {Blob} picture @param {any} thresholds @param {AbortSignal} signal */
  async #find(picture, thresholds, signal) {
    try {
      const found = await edges(picture, thresholds, signal);
      if (signal.aborted) return;
      this.#failed(null);
      this.#show(found);
    } catch (error) {
      if (signal.aborted) return;
      this.#show(null);
      this.#failed(error);
    }
  }

  /** @param {Blob | null} found */
  #show(found) {
    this.current = found;
    show(this.#image, found);
    this.#frame.setAttribute("aria-busy", "false");
  }
}
