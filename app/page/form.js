/** The form: prompt, seed and settings. The image is in `source.js`. */

import { byId, make, say } from "./dom.js";
import { tokens, WINDOW } from "./prompt-length.js";
import { isSeed, randomSeed } from "./seeds.js";
import { Slider } from "./sliders.js";

const STRONG_EDGES = 600; // of at most 2000; few photographs have edges above it

const EDGE_KINDS = [
  { name: "canny_low", label: "Faint edges from", step: 1, to: STRONG_EDGES },
  { name: "canny_high", label: "Strong edges from", step: 1, to: STRONG_EDGES },
];
const KINDS = [
  { name: "number_of_images", label: "Images", step: 1, hint: "Each with the next seed." },
  { name: "steps", label: "Steps", step: 1, to: 60, hint: "More steps take longer and add detail, up to a point." },
  { name: "guidance_scale", label: "Guidance", step: 0.1, to: 20, hint: "How closely the prompt is followed." },
  { name: "control_scale", label: "Control", step: 0.05, hint: "How closely the edges are followed." },
  { name: "temperature", label: "Temperature", step: 0.05, from: 0.05, hint: "Attention temperature of the control network: lower is sharper." },
];

export class Form {
  #text = byId("prompt");
  #seed = byId("seed");
  #newSeed = byId("new-seed");
  #negative = byId("negative");
  #asEdges = byId("as-edges");
  #negativeDefault;
  #seedUsed = false;
  /** @type {Slider[]} */
  #sliders;
  /** @type {Slider[]} */
  #edgeSliders;
  #changed;

  /**
   * @param {any} settings of the service
   * @param {(edges: boolean) => void} changed with whether the edges change by it
   */
  constructor(settings, changed) {
    this.#changed = changed;
    const guided = settings.fields.guidance_scale.maximum > 1;
    const kinds = KINDS.filter(({ name }) => guided || name !== "guidance_scale");
    this.#sliders = kinds.map((kind) => new Slider(kind, settings.fields[kind.name]));
    this.#edgeSliders = EDGE_KINDS.map((kind) => new Slider(kind, settings.fields[kind.name]));
    byId("sliders").append(...this.#sliders.flatMap((each) => each.elements));
    byId("thresholds").append(...this.#edgeSliders.flatMap((each) => each.elements));
    byId("negative-row").hidden = !guided;
    this.#text.maxLength = this.#negative.maxLength = settings.limits.text_chars;
    this.#negativeDefault = settings.negative_prompt;
    this.#offerPrompts(settings.about);
    this.#reset();
    this.#seed.value = randomSeed();
    this.#listen();
  }

  /** All values, to store and restore. */
  get state() {
    return {
      text: this.#text.value,
      negative: this.#negative.value,
      seed: this.#seed.value,
      seedUsed: this.#seedUsed,
      newSeed: this.#newSeed.checked,
      asEdges: this.#asEdges.checked,
      more: byId("more").open,
      values: this.#values,
    };
  }

  /** @param {ReturnType<typeof this.state>} state */
  set state(state) {
    this.#text.value = state.text;
    this.#negative.value = state.negative;
    this.#seed.value = state.seed;
    this.#seedUsed = state.seedUsed;
    this.#newSeed.checked = state.newSeed;
    this.#asEdges.checked = state.asEdges;
    byId("more").open = state.more;
    for (const each of this.#all) each.value = state.values[each.name] ?? each.standard;
    this.#notify(true);
  }

  /**
   * Put back what made a result, whose seed was `seed`.
   * @param {import("./job.js").Result} result
   * @param {string} seed
   */
  refill({ fields, options = fields }, seed) {
    this.state = {
      ...this.state,
      text: fields.text,
      negative: (options.negative_prompt ?? this.#negativeDefault).trim(),
      seed,
      seedUsed: false,
      newSeed: false,
      asEdges: options.control_image === "edges",
      values: options,
    };
  }

  /** @param {string} text */
  set text(text) {
    this.#text.value = text;
    this.#notify();
  }

  /** Those that differ from the configuration: a request that names one turns automatic thresholds off. */
  get thresholds() {
    return valuesOf(this.#edgeSliders.filter((each) => each.changed));
  }

  get asEdges() {
    return this.#asEdges.checked;
  }

  /** Halve the thresholds, which finds fainter edges. */
  lowerThresholds() {
    for (const each of this.#edgeSliders) each.value = Math.max(1, Math.floor(each.value / 2));
    this.#notify(true);
  }

  /**
   * What to ask for, or null if a field is wrong, which is said. `fields` are those that differ from the configuration,
   * `options` all settings as they are.
   * @returns {{fields: Record<string, unknown>, options: Record<string, unknown>} | null}
   */
  read() {
    const text = this.#text.value.trim();
    const seed = this.#seed.value.trim();
    if (!text) return this.#complain(this.#text, "Describe in a few words what the image should show.");
    if (!isSeed(seed)) return this.#complain(this.#seed, "The seed must be a whole number. The dice draws one.");
    this.#complain(null, "");
    const negative = this.#negative.value.trim();
    const edges = this.asEdges ? [] : this.#edgeSliders;
    const changed = [...this.#sliders, ...edges].filter((each) => each.changed);
    const fields = { text, random_seed: this.#nextSeed(seed), ...valuesOf(changed) };
    const control = this.asEdges ? { control_image: "edges" } : {};
    const without = negative === this.#negativeDefault ? {} : { negative_prompt: negative || " " };
    const options = { ...valuesOf([...this.#sliders, ...edges]), ...control, negative_prompt: negative };
    return { fields: { ...fields, ...control, ...without }, options };
  }

  get #all() {
    return [...this.#sliders, ...this.#edgeSliders];
  }

  get #values() {
    return valuesOf(this.#all);
  }

  #listen() {
    byId("thresholds").addEventListener("input", (/** @type {any} */ event) => this.#keepOrder(event.target.name));
    this.#seed.addEventListener("input", () => {
      this.#seedUsed = this.#newSeed.checked = false; // a typed seed is kept
    });
    byId("dice").addEventListener("click", () => {
      this.#seed.value = randomSeed();
      this.#seedUsed = false;
      this.#notify();
    });
    byId("defaults").addEventListener("click", () => {
      this.#reset();
      this.#notify(true);
    });
    byId("more").addEventListener("toggle", () => this.#notify());
    byId("compose").addEventListener("input", (/** @type {any} */ event) => {
      this.#notify(event.target === this.#asEdges || byId("thresholds").contains(event.target));
    });
  }

  /** The seed of the field; a new one if it was used and each request gets a new seed. @param {string} seed */
  #nextSeed(seed) {
    const next = this.#newSeed.checked && this.#seedUsed ? randomSeed() : seed;
    this.#seed.value = next;
    this.#seedUsed = true;
    this.#notify();
    return next;
  }

  #reset() {
    this.#all.forEach((each) => each.reset());
    this.#negative.value = this.#negativeDefault;
    this.#asEdges.checked = false;
  }

  /** Report a change of the form. @param {boolean} edges whether it changes the edges */
  #notify(edges = false) {
    byId("thresholds").hidden = this.asEdges;
    say(byId("prompt-hint"), tooLong(this.#text.value));
    say(byId("negative-hint"), tooLong(this.#negative.value) || "What to leave out of the image.");
    this.#changed(edges);
  }

  /** @param {{text: string, prompts: string[]} | null} about what the model knows */
  #offerPrompts(about) {
    if (!about) return;
    say(byId("about-text"), about.text);
    const chips = about.prompts.map((prompt) => {
      const chip = make("button", { type: "button", dir: "auto" }, prompt);
      chip.addEventListener("click", () => {
        this.text = prompt;
        this.#text.focus();
      });
      return make("li", {}, chip);
    });
    byId("about-prompts").append(...chips);
    byId("about").hidden = false;
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

/** @param {Slider[]} sliders */
function valuesOf(sliders) {
  return Object.fromEntries(sliders.map((each) => [each.name, each.value]));
}

/** @param {string} text */
function tooLong(text) {
  const count = tokens(text);
  return count > WINDOW ? `About ${count} tokens: too long. The model reads about the first ${WINDOW}.` : "";
}
