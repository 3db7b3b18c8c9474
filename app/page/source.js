/** Where the image comes from: dropped, pasted, chosen, photographed, drawn, an example, or an earlier result. */

import { announce, byId, make, say, show } from "./dom.js";
import { encoded, fitting, opened } from "./image.js";
import { Failure } from "./service.js";
import { Sketch } from "./sketch.js";

const EXAMPLES = [
  ["shapes", "a red heart, a yellow star and a white ring on a blue background"],
  ["pair", "an orange circle and a blue triangle on a black background"],
  ["stones", "a green hexagon, a pink square and a yellow blob on a purple background"],
];

export class Source {
  /** @type {Blob | null} */
  image = null;
  sketch;
  #bytes;
  #changed;

  /**
   * @param {number} bytes that the service takes
   * @param {(prompt: string | null) => void} changed an example brings a prompt along
   * @param {(sketch: import("./draft.js").Sketched | null) => void} drawn is called with the drawing after each stroke
   */
  constructor(bytes, changed, drawn) {
    this.#bytes = bytes;
    this.#changed = changed;
    this.sketch = new Sketch((drawing) => this.take(drawing, "Your drawing is now the image."), drawn);
    byId("examples").append(...EXAMPLES.map(([name, prompt]) => this.#example(name, prompt)));
    byId("photograph").hidden = navigator.maxTouchPoints === 0;
    byId("compose").addEventListener("click", this.#button);
    for (const id of ["file", "camera"]) byId(id).addEventListener("change", this.#chosen);
    document.addEventListener("paste", (event) => this.#offered(event.clipboardData, event));
    this.#listenToDrops();
  }

  /**
   * Use an image from now on.
   * @param {Blob} blob
   * @param {string} message to screen readers
   * @param {string | null} prompt
   */
  async take(blob, message = "Image loaded.", prompt = null) {
    let fit;
    try {
      fit = await fitting(blob, this.#bytes);
    } catch (error) {
      return this.complain(/** @type {Failure} */ (error));
    }
    announce(message);
    this.put(fit, prompt);
  }

  /** Use an image that the service accepts as it is, or none. @param {Blob | null} image @param {string | null} prompt */
  put(image, prompt = null) {
    this.image = image;
    show(byId("input-image"), image);
    this.complain(null);
    byId("empty").hidden = Boolean(image);
    for (const id of ["pair", "image-tools", "edge-options"]) byId(id).hidden = !image;
    this.#changed(prompt);
  }

  /** @param {Failure | null} failure */
  complain(failure) {
    say(byId("image-error"), failure ? failure.message : "");
  }

  #remove() {
    this.put(null);
    byId("empty").querySelector("button").focus();
  }

  /** @param {string} name @param {string} prompt */
  #example(name, prompt) {
    const image = make("img", { src: `page/example-${name}.svg`, alt: `Example: ${prompt}`, width: 72, height: 72 });
    const button = make("button", { type: "button" }, image);
    button.addEventListener("click", async () => {
      const { image: drawn, width, height } = await opened(await (await fetch(image.src)).blob());
      const canvas = make("canvas", { width, height });
      canvas.getContext("2d").drawImage(drawn, 0, 0);
      await this.take(await encoded(canvas, "image/png"), "The example is now the image.", prompt);
      byId("prompt").focus();
    });
    return make("li", {}, button);
  }

  /** @param {MouseEvent} event */
  #button = (event) => {
    const button = /** @type {Element} */ (event.target).closest("[data-do]");
    switch (button?.getAttribute("data-do")) {
      case "choose": return byId("file").click();
      case "photograph": return byId("camera").click();
      case "draw": return this.sketch.open(this.image);
      case "remove": return this.#remove();
    }
  };

  /** @param {Event} event */
  #chosen = (event) => {
    const input = /** @type {HTMLInputElement} */ (event.target);
    const file = input.files?.[0];
    input.value = ""; // the same file may be chosen again
    if (file) this.take(file);
  };

  /** @param {DataTransfer | null} offered @param {Event} event */
  #offered(offered, event) {
    const files = [...(offered?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    // A file of a kind that the system does not know has no type. Its kind is detected when it is read.
    this.take(files.find((each) => each.type.startsWith("image/")) ?? files[0]);
  }

  #listenToDrops() {
    const curtain = byId("drop");
    const carries = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragover", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      curtain.hidden = false;
    });
    addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) curtain.hidden = true;
    });
    addEventListener("drop", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      curtain.hidden = true;
      this.#offered(event.dataTransfer, event);
    });
  }
}
