/** The page: its parts and how they work together. */

import { Availability } from "./availability.js";
import { Card } from "./card.js";
import { announce, byId, say } from "./dom.js";
import { Draft } from "./draft.js";
import { Edges } from "./edges.js";
import { Form } from "./form.js";
import { Job } from "./job.js";
import { inverted, isLight } from "./line-art.js";
import { notice } from "./notice.js";
import { Recent } from "./recent.js";
import { saveAll } from "./save.js";
import { randomSeed } from "./seeds.js";
import { Failure, key, settings } from "./service.js";
import { Source } from "./source.js";
import { Title } from "./title.js";
import { Zoom } from "./zoom.js";

/**
 * @typedef {import("./job.js").GenerationParams} GenerationParams
 * @typedef {import("./job.js").Result} Result
 */

const MOST_FINISHED = 6; // cards; older ones are in the strip
const RETRY = 2500; // ms until the settings are requested again
const SLOW_START = 1500; // ms after which the page says what it waits for
const LEAVING = 1000; // ms; requests that fail within it failed because the page is being closed

class Page {
  /** @type {Card[]} */
  #cards = [];
  #form;
  #source;
  #draft = new Draft();
  #title = new Title();
  #zoom = new Zoom();
  #leaving = false;
  #edges = new Edges({
    failed: (failure) => this.#edgesFailed(failure),
    lower: () => this.#form.lowerThresholds(),
    enterKey: () => this.#askForKey(),
  });
  #recent = new Recent({ open: (result) => this.#open(result), remove: (result) => this.#remove(result) });
  #availability = new Availability(() => this.#edges.failing && this.#edges.again());

  /** @param {any} configured */
  constructor(configured) {
    say(byId("model"), configured.model);
    byId("model").hidden = false;
    byId("key-section").hidden = !configured.needs_key || Boolean(key.get());
    this.#form = new Form(configured, (edges) => this.#formChanged(edges));
    this.#source = new Source(
      configured.limits.image_bytes,
      (prompt) => this.#imageChanged(prompt),
      (sketch) => this.#draft.keepSketch(sketch),
    );
    this.#listen();
    if (this.#draft.form) this.#form.state = this.#draft.form;
    this.#recent.load();
    this.#restore();
    this.#availability.look();
  }

  #listen() {
    byId("compose").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#submit();
    });
    addEventListener("keydown", (event) => {
      const elsewhere = document.querySelector("dialog[open]");
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !elsewhere && !event.repeat) this.#submit();
    });
    // A double click is one request: people double-click buttons out of habit.
    byId("generate").addEventListener("click", (/** @type {MouseEvent} */ event) => event.detail > 1 && event.preventDefault());
    addEventListener("beforeunload", (event) => {
      if (this.#title.busy) event.preventDefault();
      this.#leaving = true;
      setTimeout(() => (this.#leaving = false), LEAVING); // the person may choose to stay
    });
    byId("key-use").addEventListener("click", () => this.#useKey());
    byId("key").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.#useKey();
    });
    byId("invert").addEventListener("click", async () => {
      if (this.#source.image) this.#source.take(await inverted(this.#source.image), "The image is inverted.");
    });
  }

  /** Restore the draft after a reload. Running requests were cancelled by it: the server stops when the client leaves. */
  async #restore() {
    const { image, sketch, jobs } = await this.#draft.load();
    if (image && !this.#source.image) this.#source.put(image);
    if (sketch) this.#source.sketch.restore(sketch);
    for (const { name, params } of jobs) {
      const detail = "The page was reloaded or left before this was done, so the server stopped working on it.";
      this.#add(params.fields.text, name).fail(params, new Failure({ title: "Stopped", detail }));
    }
  }

  /** @param {boolean} edges whether it changes the edges */
  #formChanged(edges) {
    this.#draft.keepForm(this.#form.state);
    if (edges) this.#updateEdges();
  }

  /** @param {string | null} prompt that comes with the image */
  #imageChanged(prompt) {
    this.#draft.keepImage(this.#source.image);
    if (prompt) this.#form.text = prompt;
    this.#updateEdges(0);
  }

  /** @param {number} [pause] ms */
  #updateEdges(pause) {
    const { image } = this.#source;
    const { thresholds, asEdges } = this.#form;
    this.#edges.update({ image, thresholds, asTheyAre: asEdges }, pause);
    this.#offerInversion(image, asEdges);
  }

  /** @param {Blob | null} image @param {boolean} asEdges */
  async #offerInversion(image, asEdges) {
    const offered = image !== null && asEdges && (await isLight(image));
    if (image === this.#source.image) byId("invert-row").hidden = !offered;
  }

  #submit() {
    const { image } = this.#source;
    if (!image) {
      this.#source.complain(/** @type {any} */ ({ message: "First choose, draw or paste an image." }));
      byId("empty").querySelector("button").focus();
      return;
    }
    const read = this.#form.read();
    if (read) this.#generate({ ...read, image, edges: this.#edges.current });
  }

  /** @param {GenerationParams} params */
  #generate(params) {
    const job = new Job(params);
    const card = this.#add(params.fields.text);
    const kept = this.#draft.keepJob(params);
    const sized = card.follow(job);
    this.#title.follow(job);
    announce("Sent.");
    let before = job.phase;
    job.addEventListener("change", () => {
      if (job.phase !== before) this.#turned(job);
      before = job.phase;
      if (!job.live && !this.#leaving) this.#draft.forgetJob(kept);
    });
    job.run();
    // To progress and Cancel, which a small screen shows above the image.
    sized.then(() => card.root.scrollIntoView({ block: matchMedia("(max-width: 820px)").matches ? "start" : "nearest" }));
  }

  /** Called when a job changes its phase. @param {Job} job */
  #turned(job) {
    if (job.phase === "queued") announce("Waiting in the queue.");
    if (job.phase === "running") announce("Generating.");
    if (job.phase === "done" && job.result) {
      announce(`Done: ${job.params.fields.text}`);
      this.#recent.add(job.result);
    }
    if (job.phase === "cancelled") {
      announce("Cancelled.");
      byId("generate").focus();
    }
    const { status } = /** @type {any} */ (job.failure) ?? {};
    if (status === 401) this.#askForKey();
    if (status === 0 || status === 503) this.#availability.look();
  }

  /** Show a recent result, and put its settings into the form. @param {Result} result */
  #open(result) {
    const there = this.#cards.find((each) => each.result?.id === result.id);
    const card = there ?? this.#add(result.fields.text);
    if (!there) card.finish(result);
    card.root.scrollIntoView({ block: "nearest" });
    card.root.focus();
    this.#refill(result, result.fields.random_seed);
  }

  /** @param {Result} result @param {string} seed */
  #refill(result, seed) {
    const [form, image] = [this.#form.state, this.#source.image];
    if (image !== result.image) this.#source.put(result.image);
    this.#form.refill(result, seed);
    if (JSON.stringify(form) === JSON.stringify(this.#form.state)) return;
    notice("The form now has this result's settings.", () => {
      this.#source.put(image);
      this.#form.state = form;
    });
  }

  /** @param {Result} result */
  async #remove(result) {
    await this.#recent.remove(result);
    this.#cards.find((each) => each.result?.id === result.id)?.close();
    notice("Result deleted.", () => this.#recent.add(result));
  }

  /** @param {string} text @param {string} [kept] the name of the draft's job that goes with the card */
  #add(text, kept) {
    const card = new Card(text, Boolean(kept), {
      again: ({ fields, options, image, edges }) =>
        this.#generate({ fields: { ...fields, random_seed: randomSeed() }, options, image, edges }),
      reuse: (image) => this.#source.take(image, "The result is now the image."),
      refill: (result, seed) => this.#refill(result, seed),
      enlarge: (image, words) => this.#zoom.open(image, words),
      save: saveAll,
      remove: (result) => this.#remove(result),
      retry: (params) => {
        card.close();
        this.#generate(params);
      },
      closed: (closed) => {
        if (kept) this.#draft.forgetJob(kept);
        this.#drop(closed);
      },
    });
    this.#cards.unshift(card);
    byId("cards").prepend(card.root);
    byId("welcome").hidden = true;
    this.#cards.filter((each) => !each.live && !each.kept).slice(MOST_FINISHED).forEach((each) => each.close());
    return card;
  }

  /** @param {Card} card */
  #drop(card) {
    this.#cards = this.#cards.filter((each) => each !== card);
    byId("welcome").hidden = this.#cards.length > 0;
    if (document.activeElement === document.body) byId("results-title").focus();
  }

  /** @param {any} failure */
  #edgesFailed(failure) {
    this.#source.complain(failure);
    if (failure?.status === 401) this.#askForKey();
    if (failure?.status === 0) this.#availability.look();
  }

  #askForKey() {
    byId("key-section").hidden = false;
    byId("key").focus();
  }

  #useKey() {
    key.set(byId("key").value.trim());
    byId("key-section").hidden = true;
    announce("The key is set.");
    if (this.#source.image) this.#updateEdges(0);
    byId("prompt").focus();
  }
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let starting;

async function start() {
  clearTimeout(starting);
  starting = setTimeout(() => hold("Waiting for the server to answer."), SLOW_START);
  let configured;
  try {
    configured = await settings();
  } catch (failure) {
    const { title, detail } = /** @type {any} */ (failure);
    hold(`${title}. ${detail}`);
    clearTimeout(starting);
    starting = setTimeout(start, RETRY);
    return;
  }
  clearTimeout(starting);
  if (!byId("compose").inert) return; // two requests may have been answered
  byId("compose").inert = false;
  new Page(configured);
}

/** Say why the page cannot be used yet. @param {string} reason */
function hold(reason) {
  say(byId("server-text"), reason);
  byId("server-retry").onclick = start;
  byId("server").hidden = false;
}

start();
