/** Shows an image in the whole window; wheel, pinch, keys and buttons zoom. Escape closes it. */

import { byId, say, show } from "./dom.js";

const MOST = 8; // times the size that fits the window
const STEP = 1.4; // of a key or a button
const CLOSE_UP = 2.5; // of a double click
const FAR = 80; // pixels that an arrow key moves
/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [FAR, 0], ArrowRight: [-FAR, 0], ArrowUp: [0, FAR], ArrowDown: [0, -FAR] };

/** @typedef {{x: number, y: number}} Point */

export class Zoom {
  #dialog = byId("zoom");
  #stage = byId("zoom-stage");
  #image = byId("zoom-image");
  #scale = 1;
  #x = 0; // of the image's centre, in pixels from the stage's centre
  #y = 0;
  /** @type {Map<number, Point>} fingers, or the mouse while its button is down */
  #pointers = new Map();

  constructor() {
    this.#dialog.addEventListener("click", this.#button);
    this.#dialog.addEventListener("keydown", this.#keyDown);
    this.#dialog.addEventListener("close", () => show(this.#image, null));
    this.#stage.addEventListener("wheel", this.#wheel, { passive: false });
    this.#stage.addEventListener("dblclick", (/** @type {MouseEvent} */ event) => {
      this.#by(this.#scale > 1 ? 1 / this.#scale : CLOSE_UP, this.#place(event));
    });
    this.#stage.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      this.#stage.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, this.#place(event));
    });
    this.#stage.addEventListener("pointermove", this.#pointerMove);
    for (const end of ["pointerup", "pointercancel"]) {
      this.#stage.addEventListener(end, (/** @type {PointerEvent} */ event) => this.#pointers.delete(event.pointerId));
    }
  }

  /** @param {Blob} image @param {string} words what it shows */
  open(image, words) {
    show(this.#image, image);
    this.#image.alt = words;
    this.#pointers.clear();
    this.#set(1, 0, 0);
    this.#dialog.showModal(); // when it closes, the focus goes back to where it was
    this.#dialog.querySelector("[data-zoom=close]").focus();
  }

  /** @param {MouseEvent} event */
  #button = (event) => {
    const button = /** @type {Element} */ (event.target).closest("[data-zoom]");
    switch (button?.getAttribute("data-zoom")) {
      case "in": return this.#by(STEP);
      case "out": return this.#by(1 / STEP);
      case "fit": return this.#set(1, 0, 0);
      case "close": return this.#dialog.close();
    }
  };

  /** @param {KeyboardEvent} event */
  #keyDown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own zoom
    if (event.key === "+" || event.key === "=") this.#by(STEP);
    else if (event.key === "-") this.#by(1 / STEP);
    else if (event.key === "0") this.#set(1, 0, 0);
    else if (event.key in ARROWS) this.#move(...ARROWS[event.key]);
    else return;
    event.preventDefault();
  };

  /** @param {WheelEvent} event */
  #wheel = (event) => {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    const strength = event.ctrlKey ? 0.01 : 0.002; // with Ctrl: a pinch on a touchpad, which moves less
    this.#by(Math.exp(-event.deltaY * lines * strength), this.#place(event));
  };

  /** @param {PointerEvent} event */
  #pointerMove = (event) => {
    const before = this.#pointers.get(event.pointerId);
    if (!before) return;
    const now = this.#place(event);
    const other = [...this.#pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.#pointers.set(event.pointerId, now);
    if (!other) return this.#move(now.x - before.x, now.y - before.y);
    this.#move((now.x - before.x) / 2, (now.y - before.y) / 2);
    this.#by(distance(now, other) / Math.max(1, distance(before, other)), { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
  };

  /** Enlarge by a factor, so that what is at `place` stays there. @param {number} factor @param {Point} place */
  #by(factor, place = { x: 0, y: 0 }) {
    const scale = Math.min(Math.max(this.#scale * factor, 1), MOST);
    const done = scale / this.#scale;
    this.#set(scale, place.x - (place.x - this.#x) * done, place.y - (place.y - this.#y) * done);
  }

  /** @param {number} x @param {number} y */
  #move(x, y) {
    this.#set(this.#scale, this.#x + x, this.#y + y);
  }

  /** @param {number} scale @param {number} x @param {number} y no farther than to the image's edge */
  #set(scale, x, y) {
    const [width, height] = [this.#stage.clientWidth, this.#stage.clientHeight].map((side) => (side * (scale - 1)) / 2);
    this.#scale = scale;
    this.#x = Math.min(Math.max(x, -width), width);
    this.#y = Math.min(Math.max(y, -height), height);
    this.#image.style.transform = `translate(${this.#x}px, ${this.#y}px) scale(${scale})`;
    say(byId("zoom-level"), `${Math.round(scale * 100)}%`);
  }

  /** Where a pointer is, from the stage's centre. @param {MouseEvent} event @returns {Point} */
  #place(event) {
    const box = this.#stage.getBoundingClientRect();
    return { x: event.clientX - box.left - box.width / 2, y: event.clientY - box.top - box.height / 2 };
  }
}

/** @param {Point} one @param {Point} other */
const distance = (one, other) => Math.hypot(one.x - other.x, one.y - other.y);
