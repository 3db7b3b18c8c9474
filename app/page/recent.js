/** The strip of recent results. */

import { announce, byId, make, say } from "./dom.js";
import { saveAll } from "./save.js";
import { Store } from "./store.js";

/** @typedef {import("./job.js").Result} Result */

const CONFIRM = 4000; // ms in which a second press confirms

export class Recent {
  #store = new Store();
  #list = byId("recent-list");
  #clear = byId("recent-clear");
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #asking;
  #actions;

  /** @param {{open: (result: Result) => void, remove: (result: Result) => void}} actions */
  constructor(actions) {
    this.#actions = actions;
    this.#clear.addEventListener("click", () => this.#ask());
    byId("recent-save").addEventListener("click", () => saveAll(this.#store.all));
  }

  async load() {
    await this.#store.open();
    this.#show();
  }

  /** @param {Result} result */
  async add(result) {
    await this.#store.add(result);
    this.#show();
  }

  /** @param {Result} result */
  async remove(result) {
    const place = this.#store.all.findIndex((each) => each.id === result.id);
    await this.#store.remove(result);
    const focused = this.#list.contains(document.activeElement);
    this.#show();
    if (focused) (this.#list.children[place] ?? this.#list.lastElementChild)?.querySelector("button").focus();
  }

  #show() {
    for (const image of this.#list.querySelectorAll("img")) URL.revokeObjectURL(image.src);
    this.#list.replaceChildren(...this.#store.all.map((result) => this.#thumb(result)));
    byId("recent").hidden = this.#store.all.length === 0;
  }

  /** @param {Result} result */
  #thumb(result) {
    const words = `Show again: ${result.fields.text}`;
    const image = make("img", { src: URL.createObjectURL(result.images[0]), alt: words });
    const button = make("button", { type: "button", title: result.fields.text }, image);
    if (result.images.length > 1) button.append(make("span", { className: "count" }, String(result.images.length)));
    button.addEventListener("click", () => this.#actions.open(result));
    const remove = make("button", { type: "button", className: "remove", "aria-label": `Delete: ${result.fields.text}`, title: "Delete" }, "×");
    remove.addEventListener("click", () => this.#actions.remove(result));
    return make("li", {}, button, remove);
  }

  /** Removing cannot be undone, so the button asks first. */
  async #ask() {
    clearTimeout(this.#asking);
    if (this.#clear.dataset.sure) {
      this.#calm();
      await this.#store.clear();
      this.#show();
      announce("Recent results removed.");
      byId("results-title").focus();
      return;
    }
    this.#clear.dataset.sure = "yes";
    say(this.#clear, `Remove all ${this.#store.all.length}?`);
    announce("Press once more to remove all recent results.");
    this.#asking = setTimeout(() => this.#calm(), CONFIRM);
  }

  #calm() {
    delete this.#clear.dataset.sure;
    say(this.#clear, "Clear");
  }
}
