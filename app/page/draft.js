/**
 * What a person is composing, kept over a reload of this tab.
 *
 * Words and settings are in sessionStorage, which is written at once, so the last letter before a reload is kept too. The
 * image, an unfinished drawing and the requests on their way are in IndexedDB, under a name that only this tab knows.
 */

import { Table } from "./store.js";

/**
 * @typedef {import("./job.js").GenerationParams} GenerationParams
 * @typedef {{strokes: import("./strokes.js").Stroke[], width: number, height: number, ground: Blob | null, open: boolean}} Sketched
 */

const FORM = "contour-form";
const VERSION = 1; // of the form's state; increase it with every change of the state's fields
const TAB = "contour-tab";
const MOST_BYTES = 30e6; // of one image
const MOST_JOBS = 20;
const MOST_OF_OTHERS = 12; // records of other tabs, which may be closed by now
const DAY = 24 * 60 * 60 * 1000; // ms

export class Draft {
  #table = new Table("contour-draft", "drafts");
  #tab = tabName();
  #jobs = new Set();
  #jobsMade = Date.now(); // names must differ from those before a reload

  /** The state of the form, or null if none is stored or another version of the page stored it. @returns {any} */
  get form() {
    try {
      const { version, state } = JSON.parse(sessionStorage.getItem(FORM) ?? "{}");
      return version === VERSION ? state : null;
    } catch {
      return null;
    }
  }

  /** @param {any} state */
  keepForm(state) {
    try {
      sessionStorage.setItem(FORM, JSON.stringify({ version: VERSION, state }));
    } catch {
      // No room, or no storage: then a reload loses it.
    }
  }

  /**
   * What was kept besides the form.
   * @returns {Promise<{image: Blob | null, sketch: Sketched | null, jobs: {name: string, params: GenerationParams}[]}>}
   */
  async load() {
    const records = await this.#table.open();
    const [own, others] = [true, false].map((mine) => records.filter((each) => (each.tab === this.#tab) === mine));
    others.sort((one, other) => other.at - one.at);
    others.filter((each, i) => i >= MOST_OF_OTHERS || Date.now() - each.at > DAY).forEach((each) => this.#table.delete(each.id));
    const jobs = own.filter((each) => each.kind === "job").map((each) => ({ name: each.name, params: each.value }));
    jobs.forEach(({ name }) => this.#jobs.add(name));
    const kept = (/** @type {string} */ kind) => own.find((each) => each.kind === kind)?.value ?? null;
    return { image: kept("image"), sketch: kept("sketch"), jobs };
  }

  /** @param {Blob | null} image */
  keepImage(image) {
    return image && image.size <= MOST_BYTES ? this.#keep("image", "image", image) : this.#table.delete(this.#id("image"));
  }

  /** @param {Sketched | null} sketch */
  keepSketch(sketch) {
    return sketch ? this.#keep("sketch", "sketch", sketch) : this.#table.delete(this.#id("sketch"));
  }

  /** Keep a request until it is done. @param {GenerationParams} params @returns {string} its name in the store */
  keepJob(params) {
    const name = `job-${++this.#jobsMade}`;
    if (this.#jobs.size < MOST_JOBS) {
      this.#jobs.add(name);
      this.#keep("job", name, params);
    }
    return name;
  }

  /** @param {string} name */
  forgetJob(name) {
    if (this.#jobs.delete(name)) this.#table.delete(this.#id(name));
  }

  /** @param {string} kind @param {string} name @param {any} value */
  #keep(kind, name, value) {
    return this.#table.put({ id: this.#id(name), tab: this.#tab, kind, name, at: Date.now(), value });
  }

  /** @param {string} name */
  #id(name) {
    return `${this.#tab}/${name}`;
  }
}

function tabName() {
  const fresh = String(Math.random()).slice(2);
  try {
    const name = sessionStorage.getItem(TAB) ?? fresh;
    sessionStorage.setItem(TAB, name);
    return name;
  } catch {
    return fresh;
  }
}
