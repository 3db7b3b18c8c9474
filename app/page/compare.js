/** Before and after, one over the other, with a slider between them. A click beside the handle enlarges. */

import { byId, make, show } from "./dom.js";

const HANDLE = 29; // pixels: the radius in which a press grabs the handle, and its distance from the sides
const MOVED = 5; // pixels: a press that moves farther is a drag

export class Compare {
  root;
  #after = make("img", { className: "after" });
  #before = make("img", { className: "before", alt: "" });
  #range = make("input", { type: "range", min: 0, max: 100, value: 0, "aria-label": "How much of before is shown" });
  #name = "";
  /** @type {{x: number, y: number, value: string} | null} a press that may become a click */
  #pressed = null;
  #enlarge;

  /** @param {() => void} enlarge */
  constructor(enlarge) {
    this.#enlarge = enlarge;
    const handle = make("span", { className: "handle", "aria-hidden": "true" });
    const button = make("button", { type: "button", className: "icon enlarge", "aria-label": "Zoom", title: "Zoom" });
    button.append(byId("zoom-icon").content.cloneNode(true));
    button.addEventListener("click", enlarge);
    this.root = make("div", { className: "compare" }, this.#after, this.#before, this.#range, handle, button);
    this.#range.addEventListener("input", () => {
      if (!this.#pressed) this.#draw();
    });
    this.#range.addEventListener("pointerdown", this.#press);
    this.#range.addEventListener("pointermove", this.#drag);
    // Not `click`, which a finger that taps a slider does not cause.
    this.#range.addEventListener("pointerup", () => {
      if (this.#revertPress()) this.#enlarge();
    });
    this.#range.addEventListener("pointercancel", () => this.#revertPress()); // the finger scrolls the page
    this.#range.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.#enlarge();
    });
    this.#draw();
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
    this.#draw();
  }

  /** Show this percentage of the earlier image, if none of it is shown yet. @param {number} share */
  reveal(share) {
    if (this.#range.value === "0") this.#range.value = String(share);
    this.#draw();
  }

  /** Release the images. */
  close() {
    show(this.#after, null);
    show(this.#before, null);
  }

  // A slider jumps to where it is pressed. Here it does so only when the press turns out to be a drag.
  /** @param {PointerEvent} event */
  #press = ({ clientX: x, clientY: y }) => {
    const { left, width } = this.#range.getBoundingClientRect();
    const { value } = this.#range;
    const handle = Math.min(Math.max((width * Number(value)) / 100, HANDLE), width - HANDLE);
    this.#pressed = Math.abs(x - left - handle) > HANDLE ? { x, y, value } : null;
  };

  /** @param {PointerEvent} event */
  #drag = ({ clientX, clientY }) => {
    if (!this.#pressed || Math.hypot(clientX - this.#pressed.x, clientY - this.#pressed.y) < MOVED) return;
    this.#pressed = null;
    this.#draw();
  };

  /** Move the slider back if the press was a click, not a drag. Returns whether it was a click. */
  #revertPress() {
    if (!this.#pressed) return false;
    this.#range.value = this.#pressed.value;
    this.#pressed = null;
    this.#draw();
    return true;
  }

  #draw() {
    const { value } = this.#range;
    this.root.style.setProperty("--at", `${value}%`);
    this.root.classList.toggle("shut", value === "0");
    this.#range.setAttribute("aria-valuetext", `${this.#name}: ${value} percent, from the left`);
  }
}
