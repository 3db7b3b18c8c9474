/** Shows the edges of the image and keeps them up to date; if there are none, says why and what to do. */

import { byId, say, show } from "./dom.js";
import { isBlack } from "./line-art.js";
import { edges } from "./service.js";
import { briefly } from "./wording.js";

const PAUSE = 150; // ms without a movement of the slider

/**
 * @typedef {{image: Blob | null, thresholds: Record<string, number>, asTheyAre: boolean}} Asked
 * @typedef {{failed: (failure: any) => void, lower: () => void, enterKey: () => void}} Actions
 */

export class Edges {
  /** @type {Blob | null} of the image and the thresholds as they are */
  current = null;
  failing = false; // the latest request for edges failed
  #image = byId("edges-image");
  #frame = byId("edges-frame");
  #asked = new AbortController();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #actions;
  /** @type {Asked | null} */
  #latest = null;

  /** @param {Actions} actions `failed` is called with a failure, or null when it is over */
  constructor(actions) {
    this.#actions = actions;
  }

  /**
   * Find the edges anew, when the hand rests.
   * @param {Asked} asked
   * @param {number} pause ms
   */
  update(asked, pause = PAUSE) {
    clearTimeout(this.#timer);
    this.#asked.abort();
    this.#asked = new AbortController();
    this.#latest = asked;
    this.current = null;
    if (!asked.image) return this.#show(null);
    this.#frame.setAttribute("aria-busy", "true");
    if (this.#image.hidden) this.#state("Finding edges");
    const { signal } = this.#asked;
    this.#timer = setTimeout(() => this.#find(asked, signal), pause);
  }

  again() {
    if (this.#latest) this.update(this.#latest, 0);
  }

  /** @param {Asked} asked @param {AbortSignal} signal */
  async #find({ image, thresholds, asTheyAre }, signal) {
    try {
      const found = asTheyAre ? image : await edges(/** @type {Blob} */ (image), thresholds, signal);
      const black = await isBlack(/** @type {Blob} */ (found));
      if (signal.aborted) return;
      this.failing = false;
      this.#actions.failed(null);
      this.#image.classList.toggle("as-they-are", asTheyAre);
      this.#show(found);
      if (black) this.#nothing(thresholds, asTheyAre);
    } catch (error) {
      if (signal.aborted) return;
      this.#show(null);
      this.#fail(error);
    }
  }

  /** @param {Record<string, number>} thresholds @param {boolean} asTheyAre */
  #nothing({ canny_high: high = Infinity }, asTheyAre) {
    if (asTheyAre) return this.#state("This image is all black: it has no lines.");
    if (high <= 1) return this.#state("No edges in this image. Choose another one.");
    this.#state("No edges: lower the thresholds", "Lower them", () => this.#actions.lower());
  }

  /** @param {any} failure */
  #fail(failure) {
    this.failing = true;
    this.#actions.failed(failure);
    if (failure.status === 401) this.#state(briefly(failure), "Enter the key", () => this.#actions.enterKey());
    else this.#state(briefly(failure), "Try again", () => this.again());
  }

  /** @param {Blob | null} found */
  #show(found) {
    this.current = found;
    show(this.#image, found);
    this.#frame.setAttribute("aria-busy", "false");
    this.#state("");
  }

  /** @param {string} text @param {string} [label] of the button @param {() => void} [action] */
  #state(text, label = "", action = () => {}) {
    const button = byId("edges-state-do");
    say(byId("edges-state-text"), text);
    say(button, label);
    button.hidden = !label;
    button.onclick = action;
    byId("edges-state").hidden = !text;
  }
}
