/** A card: shows a request or its result. */

import { Compare } from "./compare.js";
import { make, parts, say, show } from "./dom.js";
import { seedOf } from "./seeds.js";
import { failed, facts, fileName, phase } from "./wording.js";

/**
 * @typedef {import("./job.js").Job} Job
 * @typedef {import("./job.js").Result} Result
 * @typedef {import("./job.js").GenerationParams} GenerationParams
 * @typedef {{
 *   again: (result: Result) => void, reuse: (image: Blob) => void, refill: (result: Result, seed: string) => void,
 *   retry: (params: GenerationParams) => void, enlarge: (image: Blob, words: string) => void, save: (results: Result[]) => void,
 *   remove: (result: Result) => void, closed: (card: Card) => void,
 * }} Actions
 */

const TICK = 200; // ms
const UNCOVERED = 50; // percent of the earlier image that a click on it shows
const YOURS = "Yours";
let cards = 0; // makes the names of each card's radio buttons unique

export class Card {
  root;
  #part = parts("card-template");
  #actions;
  #name = `before-${++cards}`;
  /** @type {Job | null} */
  #job = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #ticking;
  /** @type {Compare | null} */
  #compare = null;
  /** @type {Result | null} */
  result = null;
  #chosen = 0; // of several images

  /** @param {string} text @param {boolean} kept until it is closed @param {Actions} actions */
  constructor(text, kept, actions) {
    this.kept = kept;
    this.#actions = actions;
    this.root = this.#part.root;
    const title = this.#part.title;
    say(title, text);
    title.id = `${this.#name}-title`;
    this.root.setAttribute("aria-labelledby", title.id);
    this.#part.close.addEventListener("click", () => this.close());
    this.#part.cancel.addEventListener("click", () => this.#job?.cancel());
  }

  /** Whether its request is still running. */
  get live() {
    return this.#job?.live ?? false;
  }

  close() {
    clearInterval(this.#ticking);
    this.#job?.cancel();
    this.#compare?.close();
    for (const image of this.root.querySelectorAll("img")) if (image.src) URL.revokeObjectURL(image.src);
    this.root.remove();
    this.#actions.closed(this);
  }

  /** Show the progress of a job until it ends. Resolves when the card has its size. @param {Job} job */
  follow(job) {
    this.#job = job;
    this.#part.close.hidden = true;
    this.#part.stage.replaceChildren(...job.forming.map(() => this.#forming(job.params)));
    this.#part.beside.replaceChildren(...this.#befores(job.params));
    job.addEventListener("change", () => this.#progress(job));
    this.#ticking = setInterval(() => this.#tick(job), TICK);
    this.#progress(job);
    return Promise.allSettled([...this.#part.stage.querySelectorAll(".ground")].map((image) => image.decode()));
  }

  /** Show a result. @param {Result} result */
  finish(result) {
    clearInterval(this.#ticking);
    const { done, progress, close, stage, beside } = this.#part;
    this.result = result;
    progress.hidden = true;
    close.hidden = done.hidden = false;
    this.#compare = new Compare(() => this.#actions.enlarge(result.images[this.#chosen], described(result)));
    stage.replaceChildren(this.#compare.root);
    if (result.images.length > 1) stage.append(this.#choice(result));
    beside.replaceChildren(...this.#befores(result));
    this.#compare.before(result.image, YOURS);
    this.#choose(result, 0);
    this.root.dataset.phase = "done";
    this.#offer(result);
    this.#warn(result.warnings ?? []);
  }

  /** Add the buttons for a result. @param {Result} result */
  #offer(result) {
    const { again, reuse, refill, all, delete: remove } = this.#part;
    const seed = () => seedOf(result.fields.random_seed, this.#chosen);
    again.addEventListener("click", (/** @type {MouseEvent} */ event) => event.detail < 2 && this.#actions.again(result));
    reuse.addEventListener("click", () => this.#actions.reuse(result.images[this.#chosen]));
    refill.addEventListener("click", () => this.#actions.refill(result, seed()));
    all.addEventListener("click", () => this.#actions.save([result]));
    remove.addEventListener("click", () => this.#actions.remove(result));
    all.hidden = result.images.length === 1;
  }

  /** @param {string[]} warnings */
  #warn(warnings) {
    this.#part.warnings.replaceChildren(...warnings.map((each) => make("li", { dir: "auto" }, each)));
    this.#part.warnings.hidden = !warnings.length;
  }

  /** The place of an unfinished image: shows its edges until there is a preview. @param {any} params */
  #forming(params) {
    const ground = make("img", { className: params.edges ? `ground ${looks(params)}` : "ground", alt: "" });
    show(ground, params.edges ?? params.image);
    return make("div", { className: "forming" }, ground, make("img", { className: "preview", alt: "", hidden: true }));
  }

  /** @param {Job} job */
  #progress(job) {
    this.root.dataset.phase = job.phase;
    const { bar, stage } = this.#part;
    if (job.phase === "running") bar.value = job.share;
    job.forming.forEach(({ preview }, i) => {
      const image = stage.children[i]?.querySelector(".preview");
      if (preview && image && image.src !== preview) Object.assign(image, { src: preview, hidden: false });
    });
    this.#tick(job);
    if (job.phase === "done" && job.result) this.finish(job.result);
    else if (job.phase === "failed" && job.failure) this.fail(job.params, job.failure);
    else if (job.phase === "cancelled") this.close();
  }

  /** @param {Job} job */
  #tick(job) {
    if (!job.live) return;
    say(this.#part.phase, phase(job));
    say(this.#part.clock, `${job.seconds.toFixed(1)} s`);
  }

  /** Show why there is no result. @param {GenerationParams} params @param {import("./service.js").Failure} failure */
  fail(params, failure) {
    clearInterval(this.#ticking);
    const { title, detail, retryAfter } = failed(/** @type {any} */ (failure));
    this.#part.retry.onclick = () => this.#actions.retry(params);
    for (const part of ["progress", "stage", "beside"]) this.#part[part].hidden = true;
    this.#part.close.hidden = this.#part.problem.hidden = false;
    say(this.#part["problem-title"], title);
    say(this.#part["problem-detail"], detail);
    this.#countDown(retryAfter ?? 0);
  }

  /** Enable the button to try again after some seconds. @param {number} seconds */
  #countDown(seconds) {
    say(this.#part.wait, seconds > 0 ? `in ${seconds} s` : "");
    if (seconds > 0) this.#ticking = setTimeout(() => this.#countDown(seconds - 1), 1000);
  }

  /** Buttons that choose which of several images is shown. @param {Result} result */
  #choice(result) {
    const buttons = result.images.map((image, i) => {
      const thumb = make("img", { alt: `Image ${i + 1} of ${result.images.length}` });
      show(thumb, image);
      const button = make("button", { type: "button", "aria-pressed": String(i === 0) }, thumb);
      button.addEventListener("click", () => {
        buttons.forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
        this.#choose(result, i);
      });
      return button;
    });
    return make("div", { className: "choice", role: "group", "aria-label": "Choose an image" }, ...buttons);
  }

  /** @param {Result} result @param {number} i */
  #choose(result, i) {
    const image = result.images[i];
    this.#chosen = i;
    this.#compare?.after(image, described(result));
    const { download } = this.#part;
    URL.revokeObjectURL(download.href);
    Object.assign(download, { href: URL.createObjectURL(image), download: fileName(result, i) });
    const said = facts(result, i).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { dir: "auto" }, value)));
    this.#part.facts.replaceChildren(...said);
  }

  /** Buttons for the images to compare the result with. @param {GenerationParams} params */
  #befores(params) {
    const both = /** @type {[string, Blob | null, string][]} */ ([[YOURS, params.image, ""], ["Edges", params.edges, looks(params)]]);
    const choices = both.flatMap(([name, image, look]) => (image ? [this.#before(name, image, look)] : []));
    const group = make("div", { role: "radiogroup", "aria-labelledby": this.#name }, ...choices);
    return [make("p", { id: this.#name }, this.#compare ? "Compare with" : "Made from"), group];
  }

  /** @param {string} name @param {Blob} image @param {string} look its class */
  #before(name, image, look) {
    const compare = this.#compare;
    const thumb = make("img", { alt: "", className: look });
    show(thumb, image);
    const pick = make("input", { type: "radio", name: this.#name, checked: compare && name === YOURS, disabled: !compare });
    // A click on the chosen button shows its image as well.
    for (const kind of ["change", "click"]) {
      pick.addEventListener(kind, () => {
        compare?.before(image, name);
        compare?.reveal(UNCOVERED);
      });
    }
    return make("label", {}, pick, thumb, make("span", {}, name));
  }
}

/** @param {Result} result */
const described = (result) => `Result: ${result.fields.text}`;

/** The CSS class of an edge map: detected lines are thin. @param {GenerationParams} params */
const looks = ({ options }) => (options?.control_image === "edges" ? "" : "edges");
