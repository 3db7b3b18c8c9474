/** The page: its parts, and what one has to do with another. */

import { Card } from "./card.js";
import { announce, byId, say } from "./dom.js";
import { Edges } from "./edges.js";
import { Form } from "./form.js";
import { Job } from "./job.js";
import { Recent } from "./recent.js";
import { randomSeed } from "./seeds.js";
import { key, settings } from "./service.js";
import { Source } from "./source.js";

/**
 * @typedef {import("./job.js").Wanted} Wanted
 * @typedef {import("./job.js").Result} Result
 */

const MOST_FINISHED = 6; // cards; older ones are in the strip

class Page {
  /** @type {Card[]} */
  #cards = [];
  #form;
  #source;
  #edges = new Edges((failure) => this.#edgesFailed(failure));
  #recent = new Recent((result) => this.#open(result));

  /** @param {any} configured */
  constructor(configured) {
    say(byId("model"), configured.model);
    byId("model").hidden = false;
    byId("key-section").hidden = !configured.needs_key || Boolean(key.get());
    this.#form = new Form(configured, () => this.#edges.update(this.#source.picture, this.#form.thresholds));
    this.#source = new Source(configured.taken.picture_bytes, (prompt) => {
      if (prompt) this.#form.text = prompt;
      this.#edges.update(this.#source.picture, this.#form.thresholds, 0);
    });
    byId("compose").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#submit();
    });
    addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !byId("sketch").open) this.#submit();
    });
    byId("key-use").addEventListener("click", () => this.#useKey());
    byId("key").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.#useKey();
    });
    this.#recent.load();
  }

  #submit() {
    const { picture } = this.#source;
    if (!picture) {
      this.#source.complain(/** @type {any} */ ({ message: "First choose, draw or paste a picture." }));
      byId("empty").querySelector("button").focus();
      return;
    }
    const fields = this.#form.read();
    if (fields) this.#generate({ fields, picture, edges: this.#edges.current });
  }

  /** @param {Wanted} wanted */
  #generate(wanted) {
    const job = new Job(wanted);
    const card = this.#add(wanted.fields.text);
    card.follow(job);
    announce("Sent.");
    let before = job.phase;
    job.addEventListener("change", () => {
      if (job.phase !== before) this.#turned(job);
      before = job.phase;
    });
    job.run();
    card.root.scrollIntoView({ block: "nearest" });
  }

  /** A job is in another phase. @param {Job} job */
  #turned(job) {
    if (job.phase === "queued") announce("It waits for its turn.");
    if (job.phase === "running") announce("It is being made.");
    if (job.phase === "done" && job.result) {
      announce(`Done: ${job.wanted.fields.text}`);
      this.#recent.add(job.result);
    }
    if (job.phase === "cancelled") {
      announce("Cancelled.");
      byId("generate").focus();
    }
    if (/** @type {any} */ (job.failure)?.status === 401) this.#askForKey();
  }

  /** @param {Result} result */
  #open(result) {
    const card = this.#add(result.fields.text);
    card.finish(result);
    card.root.focus();
  }

  /** @param {string} text */
  #add(text) {
    const card = new Card(text, {
      again: ({ fields, picture, edges }) => this.#generate({ fields: { ...fields, random_seed: randomSeed() }, picture, edges }),
      reuse: (image) => this.#source.take(image, "The result is the picture now."),
      retry: (job) => {
        card.close();
        this.#generate(job.wanted);
      },
      closed: (closed) => this.#drop(closed),
    });
    this.#cards.unshift(card);
    byId("cards").prepend(card.root);
    byId("welcome").hidden = true;
    this.#cards.filter((each) => !each.live).slice(MOST_FINISHED).forEach((each) => each.close());
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
  }

  #askForKey() {
    byId("key-section").hidden = false;
    byId("key").focus();
  }

  #useKey() {
    key.set(byId("key").value.trim());
    byId("key-section").hidden = true;
    announce("The key is used from now on.");
    if (this.#source.picture) this.#edges.update(this.#source.picture, this.#form.thresholds, 0);
    byId("prompt").focus();
  }
}

settings().then(
  (configured) => new Page(configured),
  (failure) => say(byId("form-error"), `${failure.title}. ${failure.message}`),
);
