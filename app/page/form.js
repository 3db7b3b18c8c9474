/** What is asked for, besides the picture: words, seed and settings. */

import { byId, say } from "./dom.js";
import { isSeed, randomSeed } from "./seeds.js";
import { Slider } from "./sliders.js";

const STRONG_EDGES = 600; // of at most 2000: above, hardly a photograph has any

const EDGE_KINDS = [
  { name: "canny_low", label: "Faint edges from", step: 1, to: STRONG_EDGES },
  { name: "canny_high", label: "Strong edges from", step: 1, to: STRONG_EDGES },
];
const KINDS = [
  { name: "number_of_images", label: "Pictures", step: 1, hint: "Each with the next seed." },
  { name: "steps", label: "Steps", step: 1, to: 60, hint: "More take longer, and are finer up to a point." },
  { name: "guidance_scale", label: "Guidance", step: 0.1, to: 20, hint: "How closely the prompt is followed." },
  { name: "control_scale", label: "Control", step: 0.05, hint: "How closely the edges are followed." },
  { name: "temperature", label: "Temperature", step: 0.05, from: 0.05, hint: "Of the control's attention: lower is sharper." },
];

export class Form {
  #text = byId("prompt");
  #seed = byId("seed");
  #negative = byId("negative");
  #negativeDefault;
  /** @type {Slider[]} */
  #sliders;
  /** @type {Slider[]} */
  #edgeSliders;

  /**
   * @param {any} settings of the service
   * @param {() => void} edgesChanged
   */
  constructor(settings, edgesChanged) {
    const guided = settings.fields.guidance_scale.maximum > 1;
    const kinds = KINDS.filter(({ name }) => guided || name !== "guidance_scale");
    this.#sliders = kinds.map((kind) => new Slider(kind, settings.fields[kind.name]));
    this.#edgeSliders = EDGE_KINDS.map((kind) => new Slider(kind, settings.fields[kind.name]));
    byId("sliders").append(...this.#sliders.flatMap((each) => each.elements));
    byId("thresholds").append(...this.#edgeSliders.flatMap((each) => each.elements));
    byId("thresholds").addEventListener("input", (/** @type {any} */ event) => {
      this.#keepOrder(event.target.name);
      edgesChanged();
    });
    byId("negative-row").hidden = !guided;
    this.#text.maxLength = this.#negative.maxLength = settings.taken.text_chars;
    this.#negativeDefault = settings.negative_prompt;
    byId("dice").addEventListener("click", () => (this.#seed.value = randomSeed()));
    byId("defaults").addEventListener("click", () => {
      this.#reset();
      edgesChanged();
    });
    this.#reset();
    this.#seed.value = randomSeed();
  }

  /** @param {string} text */
  set text(text) {
    this.#text.value = text;
  }

  get thresholds() {
    const [low, high] = this.#edgeSliders.map((each) => each.value);
    return { canny_low: low, canny_high: high };
  }

  /**
   * The fields of a request, those alone that differ from the configuration; null if one is wrong, which is said.
   * @returns {Record<string, unknown> | null}
   */
  read() {
    const text = this.#text.value.trim();
    const seed = this.#seed.value.trim();
    if (!text) return this.#complain(this.#text, "Say in a few words what the picture should show.");
    if (!isSeed(seed)) {
      return this.#complain(this.#seed, "The seed is a whole number; the dice finds one.");
    }
    this.#complain(null, "");
    const changed = [...this.#sliders, ...this.#edgeSliders].filter((each) => each.changed);
    const fields = { text, random_seed: seed, ...Object.fromEntries(changed.map((each) => [each.name, each.value])) };
    const negative = this.#negative.value.trim();
    return negative === this.#negativeDefault ? fields : { ...fields, negative_prompt: negative || " " };
  }

  #reset() {
    [...this.#sliders, ...this.#edgeSliders].forEach((each) => each.reset());
    this.#negative.value = this.#negativeDefault;
  }

  /** @param {string} moved */
  #keepOrder(moved) {
    const [low, high] = this.#edgeSliders;
    if (low.value <= high.value) return;
    if (moved === low.name) high.value = low.value;
    else low.value = high.value;
  }

  /** @param {HTMLElement | null} field @param {string} text */
  #complain(field, text) {
    for (const each of [this.#text, this.#seed]) each.setAttribute("aria-invalid", String(each === field));
    say(byId("form-error"), text);
    field?.focus();
    return null;
  }
}
