/** A request or a result, as it is shown. */

import { Compare } from "./compare.js";
import { make, parts, say, show } from "./dom.js";
import { failed, facts, fileName, phase } from "./wording.js";

/**
 * @typedef {import("./job.js").Job} Job
 * @typedef {import("./job.js").Result} Result
 * @typedef {{again: (result: Result) => void, reuse: (image: Blob) => void, retry: (job: Job) => void, closed: (card: Card) => void}} Actions
 */

const TICK = 200; // ms
const UNCOVERED = 50; // percent of what was before, when it is chosen
let cards = 0; // each needs names of its own for its radio buttons

export class Card {
  root;
  #part = parts("card-template");
  #actions;
  #name = `before-${++cards}`;
  /** @type {Job | null} */
  #job = null;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #ticking;
  /** @type {Compare | null} */
  #compare = null;

  /** @param {string} text @param {Actions} actions */
  constructor(text, actions) {
    this.#actions = actions;
    this.root = this.#part.root;
    const title = this.#part.title;
    say(title, text);
    title.id = `${this.#name}-title`;
    this.root.setAttribute("aria-labelledby", title.id);
    this.#part.close.addEventListener("click", () => this.close());
    this.#part.cancel.addEventListener("click", () => this.#job?.cancel());
    this.#part.retry.addEventListener("click", () => this.#job && actions.retry(this.#job));
  }

  /** Whether it is about work that goes on. */
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

  /** Show how a job goes, to its end. @param {Job} job */
  follow(job) {
    this.#job = job;
    this.#part.close.hidden = true;
    this.#part.stage.replaceChildren(...job.forming.map(() => this.#forming(job.wanted)));
    job.addEventListener("change", () => this.#progress(job));
    this.#ticking = setInterval(() => this.#tick(job), TICK);
    this.#progress(job);
  }

  /** Show a result. @param {Result} result */
  finish(result) {
    clearInterval(this.#ticking);
    const { after, progress, close } = this.#part;
    progress.hidden = true;
    close.hidden = after.hidden = false;
    const compare = (this.#compare = new Compare());
    this.#part.stage.replaceChildren(compare.root);
    if (result.images.length > 1) this.#part.stage.append(this.#choice(result));
    this.#part.beside.replaceChildren(...this.#befores(result));
    this.#choose(result, 0);
    this.#part.again.addEventListener("click", () => this.#actions.again(result));
  }

  /** The place where a picture forms: over its edges, as long as there is nothing of it. @param {any} wanted */
  #forming(wanted) {
    const ground = make("img", { className: "ground", alt: "" });
    show(ground, wanted.edges ?? wanted.picture);
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
    else if (job.phase === "failed" && job.failure) this.#fail(job);
    else if (job.phase === "cancelled") this.close();
  }

  /** @param {Job} job */
  #tick(job) {
    if (!job.live) return;
    say(this.#part.phase, phase(job));
    say(this.#part.clock, `${job.seconds.toFixed(1)} s`);
  }

  /** @param {Job} job */
  #fail(job) {
    clearInterval(this.#ticking);
    const { title, detail } = failed(/** @type {any} */ (job.failure));
    this.#part.progress.hidden = this.#part.stage.hidden = true;
    this.#part.close.hidden = this.#part.problem.hidden = false;
    say(this.#part["problem-title"], title);
    say(this.#part["problem-detail"], detail);
  }

  /** Which of several pictures is shown. @param {Result} result */
  #choice(result) {
    const buttons = result.images.map((image, i) => {
      const thumb = make("img", { alt: `Picture ${i + 1} of ${result.images.length}` });
      show(thumb, image);
      const button = make("button", { type: "button", "aria-pressed": String(i === 0) }, thumb);
      button.addEventListener("click", () => {
        buttons.forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
        this.#choose(result, i);
      });
      return button;
    });
    return make("div", { className: "choice", role: "group", "aria-label": "Pictures" }, ...buttons);
  }

  /** @param {Result} result @param {number} i */
  #choose(result, i) {
    const image = result.images[i];
    this.#compare?.after(image, `Result: ${result.fields.text}`);
    const { download } = this.#part;
    URL.revokeObjectURL(download.href);
    Object.assign(download, { href: URL.createObjectURL(image), download: fileName(result, i) });
    this.#part.reuse.onclick = () => this.#actions.reuse(image);
    say(this.#part.facts, facts(result, i));
  }

  /** What the result can be compared with. @param {Result} result */
  #befores(result) {
    const befores = /** @type {[string, Blob | null][]} */ ([["Yours", result.picture], ["Edges", result.edges]]);
    const choices = befores.flatMap(([name, image]) => (image ? [this.#before(name, image)] : []));
    this.#compare?.before(result.picture, "Yours");
    return [make("p", { id: this.#name }, "Compare with"), make("div", { role: "radiogroup", "aria-labelledby": this.#name }, ...choices)];
  }

  /** @param {string} name @param {Blob} image */
  #before(name, image) {
    const thumb = make("img", { alt: "" });
    show(thumb, image);
    const pick = make("input", { type: "radio", name: this.#name, checked: name === "Yours" });
    const choose = () => {
      this.#compare?.before(image, name);
      this.#compare?.reveal(UNCOVERED);
    };
    pick.addEventListener("change", choose);
    pick.addEventListener("click", choose);
    return make("label", {}, pick, thumb, make("span", {}, name));
  }
}
