/** A numeric option of a request: a slider with its label, value and description. */

import { make, say } from "./dom.js";

/**
 * @typedef {{default: number, minimum: number, maximum: number}} Range
 * @typedef {{name: string, label: string, hint?: string, step: number, from?: number, to?: number}} Kind
 */

export class Slider {
  /** @type {Node[]} */
  elements;
  #kind;
  #range;
  #input;
  #value = make("span", { className: "value", "aria-hidden": "true" }); // a screen reader reads the slider itself

  /**
   * @param {Kind} kind `from` and `to` narrow what the slider offers to what is sensible
   * @param {Range} range
   */
  constructor(kind, range) {
    this.#kind = kind;
    this.#range = range;
    const id = `field-${kind.name}`;
    this.#input = make("input", {
      type: "range", id, name: kind.name, step: kind.step,
      min: Math.max(range.minimum, kind.from ?? range.minimum),
      max: Math.max(Math.min(range.maximum, kind.to ?? range.maximum), range.default),
    });
    const head = make("div", { className: "slider-head" }, make("label", { for: id }, kind.label), this.#value);
    this.elements = [make("div", { className: "slider" }, head, this.#input)];
    if (kind.hint) {
      this.#input.setAttribute("aria-describedby", `${id}-hint`);
      this.elements[0].appendChild(make("p", { className: "hint", id: `${id}-hint` }, kind.hint));
    }
    this.#input.addEventListener("input", () => this.#tell());
    this.reset();
  }

  get name() {
    return this.#kind.name;
  }

  get value() {
    return Number(this.#input.value);
  }

  set value(value) {
    this.#input.value = String(value);
    this.#tell();
  }

  /** The configured value. */
  get standard() {
    return this.#range.default;
  }

  /** Whether its value differs from the configured one. */
  get changed() {
    return this.value !== this.standard;
  }

  reset() {
    this.value = this.standard;
  }

  #tell() {
    const digits = Number.isInteger(this.#kind.step) ? 0 : String(this.#kind.step).split(".")[1].length;
    say(this.#value, this.value.toFixed(digits));
    this.#input.style.setProperty("--filled", String((this.value - this.#input.min) / (this.#input.max - this.#input.min)));
  }
}
