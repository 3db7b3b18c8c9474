/** The dialog for drawing, with finger, mouse, pen or keys. */

import { byId, make } from "./dom.js";
import { encoded, opened } from "./image.js";
import { Drawing } from "./strokes.js";

/** @typedef {import("./draft.js").Sketched} Sketched */

const COLOURS = {
  Black: "#141414", Grey: "#828282", White: "#ffffff", Red: "#dc2328", Orange: "#f58c19", Yellow: "#fae132",
  Green: "#2da541", Cyan: "#3ccdd7", Blue: "#234bdc", Purple: "#822db4", Pink: "#f591c3", Brown: "#784623",
};
const SIDE = 768; // pixels of a new drawing
const STEP = 8; // pixels that an arrow key moves, FAR with Shift
const FAR = 48;
const MOST_POINTS = 100_000; // of a drawing that is kept over a reload
/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Sketch {
  #dialog = byId("sketch");
  #canvas = byId("canvas");
  #cursor = byId("cursor");
  #drawing = new Drawing(this.#canvas);
  #colour = COLOURS.Black;
  #erasing = false;
  /** @type {number | "keys" | null} the pointer that draws */
  #pen = null;
  /** @type {[number, number]} */
  #at = [0, 0];
  /** @type {Blob | null} what is drawn on */
  #ground = null;
  #use;
  #changed;

  /**
   * @param {(drawing: Blob) => void} use
   * @param {(sketch: Sketched | null) => void} changed is called with the drawing after each stroke, with null when it is empty
   */
  constructor(use, changed) {
    this.#use = use;
    this.#changed = changed;
    byId("swatches").append(...Object.entries(COLOURS).map(([name, colour]) => this.#swatch(name, colour)));
    this.#canvas.addEventListener("pointerdown", this.#pointerDown);
    this.#canvas.addEventListener("pointermove", this.#pointerMove);
    for (const end of ["pointerup", "pointercancel"]) this.#canvas.addEventListener(end, () => this.#lift());
    this.#canvas.addEventListener("keydown", this.#keyDown);
    this.#canvas.addEventListener("blur", () => this.#lift());
    this.#dialog.addEventListener("click", this.#button);
    this.#dialog.addEventListener("close", () => this.#tell());
    this.#dialog.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) this.#undo();
    });
  }

  /**
   * Begin, on an image or on white.
   * @param {Blob | null} ground
   */
  async open(ground) {
    if (ground) {
      const { image, width, height } = await opened(ground);
      const scale = SIDE / Math.max(width, height);
      this.#ground = ground;
      this.#drawing.begin(Math.round(width * scale), Math.round(height * scale), image);
    } else if (this.#drawing.empty) {
      this.#ground = null;
      this.#drawing.begin(SIDE, SIDE);
    }
    this.#show();
  }

  /** Go on with a drawing from before a reload. @param {Sketched} sketch */
  async restore({ strokes, width, height, ground, open }) {
    this.#ground = ground;
    this.#drawing.begin(width, height, ground && (await opened(ground)).image, strokes);
    if (open) this.#show();
  }

  #show() {
    this.#at = [this.#canvas.width / 2, this.#canvas.height / 2];
    this.#erase(false);
    this.#dialog.showModal();
    this.#canvas.focus();
  }

  /** @param {string} name @param {string} colour */
  #swatch(name, colour) {
    const pick = make("input", { type: "radio", name: "colour", checked: colour === this.#colour, "aria-label": name });
    const dot = make("span", { className: "dot" });
    dot.style.backgroundColor = colour;
    pick.addEventListener("change", () => {
      this.#colour = colour;
      this.#erase(false);
    });
    return make("label", { title: name }, pick, dot);
  }

  /** @param {PointerEvent} event */
  #pointerDown = (event) => {
    if (event.button !== 0 || this.#pen !== null) return;
    event.preventDefault();
    this.#canvas.focus({ preventScroll: true });
    this.#canvas.setPointerCapture(event.pointerId);
    this.#cursor.hidden = true;
    this.#pen = event.pointerId;
    this.#down(this.#place(event));
  };

  /** @param {PointerEvent} event */
  #pointerMove = (event) => {
    if (event.pointerId !== this.#pen) return;
    const all = event.getCoalescedEvents?.() ?? [];
    (all.length ? all : [event]).forEach((each) => this.#drawing.move(this.#place(each)));
  };

  /** @param {KeyboardEvent} event */
  #keyDown = (event) => {
    if (event.key === " ") {
      if (this.#pen === "keys") this.#lift();
      else {
        this.#pen = "keys";
        this.#down(this.#at);
      }
    } else if (event.key in ARROWS) {
      const far = event.shiftKey ? FAR : STEP;
      const { width, height } = this.#canvas;
      const [x, y] = ARROWS[event.key].map((sign, axis) => this.#at[axis] + sign * far);
      this.#at = [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
      if (this.#pen === "keys") this.#drawing.move(this.#at);
    } else return;
    event.preventDefault();
    this.#showCursor();
  };

  /** @param {MouseEvent} event */
  #button = (event) => {
    const button = /** @type {Element} */ (event.target).closest("[data-pen]");
    switch (button?.getAttribute("data-pen")) {
      case "erase": return this.#erase(!this.#erasing);
      case "undo": return this.#undo();
      case "clear": return this.#clear();
      case "cancel": return this.#dialog.close();
      case "use": return this.#finish();
    }
  };

  /** @param {[number, number]} point */
  #down(point) {
    this.#drawing.down(this.#erasing ? null : this.#colour, Number(byId("pen-width").value), point);
  }

  #undo() {
    this.#lift();
    this.#drawing.undo();
    this.#tell();
  }

  #clear() {
    this.#drawing.clear();
    this.#tell();
  }

  #lift() {
    if (this.#pen !== null) this.#tell();
    this.#pen = null;
    this.#cursor.hidden = true;
  }

  #tell() {
    const { strokes, hasGround, empty } = this.#drawing;
    if (strokes.reduce((sum, { points }) => sum + points.length, 0) > MOST_POINTS) return;
    const { width, height } = this.#canvas;
    const sketch = { strokes, width, height, ground: hasGround ? this.#ground : null, open: this.#dialog.open };
    this.#changed(empty ? null : sketch);
  }

  /** @param {boolean} erasing */
  #erase(erasing) {
    this.#erasing = erasing;
    this.#dialog.querySelector("[data-pen=erase]").setAttribute("aria-pressed", String(erasing));
  }

  async #finish() {
    const drawing = await encoded(this.#canvas, "image/png");
    this.#dialog.close();
    this.#use(drawing);
  }

  /** @param {PointerEvent} event @returns {[number, number]} */
  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    const scale = this.#canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  #showCursor() {
    const scale = this.#canvas.clientWidth / this.#canvas.width;
    this.#cursor.style.left = `${this.#canvas.offsetLeft + this.#at[0] * scale}px`;
    this.#cursor.style.top = `${this.#canvas.offsetTop + this.#at[1] * scale}px`;
    this.#cursor.classList.toggle("down", this.#pen === "keys");
    this.#cursor.hidden = false;
  }
}
