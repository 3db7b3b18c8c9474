/** Before and after, one over the other, with a slider between them. */

import { make, show } from "./dom.js";

export class Compare {
  root;
  #after = make("img", { className: "after" });
  #before = make("img", { className: "before", alt: "" });
  #range = make("input", { type: "range", min: 0, max: 100, value: 0, "aria-label": "How much of before is shown" });
  #name = "";

  constructor() {
    const handle = make("span", { className: "handle", "aria-hidden": "true" });
    this.root = make("div", { className: "compare" }, this.#after, this.#before, this.#range, handle);
    this.#range.addEventListener("input", () => this.#tell());
    this.#tell();
  }

  /** @param {Blob} image @param {string} words what it shows */
  after(image, words) {
    show(this.#after, image);
    this.#after.alt = words;
  }

  /** @param {Blob} image @param {string} name */
  before(image, name) {
    show(this.#before, image);
    this.#name = name;
    this.#tell();
  }

  /** Uncover so much of what was before, 0 to 100, if nothing is uncovered yet. @param {number} share */
  reveal(share) {
    if (this.#range.value === "0") this.#range.value = String(share);
    this.#tell();
  }

  /** Let go of the pictures. */
  close() {
    show(this.#after, null);
    show(this.#before, null);
  }

  #tell() {
    const { value } = this.#range;
    this.root.style.setProperty("--at", `${value}%`);
    this.root.classList.toggle("shut", value === "0");
    this.#range.setAttribute("aria-valuetext", `${this.#name}: ${value} percent, from the left`);
  }
}
