/** A drawing: strokes over a background, so that each can be undone. */

/** @typedef {{colour: string, width: number, points: [number, number][]}} Stroke */

export const GROUND = "#ffffff";

export class Drawing {
  /** @type {Stroke[]} */
  #strokes = [];
  #canvas;
  #context;
  /** @type {CanvasImageSource | null} */
  #ground = null;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  }

  get strokes() {
    return this.#strokes;
  }

  /** Whether it is drawn on an image. */
  get hasGround() {
    return this.#ground !== null;
  }

  /** Whether anything is drawn. */
  get empty() {
    return this.#strokes.length === 0 && !this.#ground;
  }

  /**
   * Begin anew, on an image or on white.
   * @param {number} width
   * @param {number} height
   * @param {CanvasImageSource | null} ground
   * @param {Stroke[]} strokes that are there already
   */
  begin(width, height, ground = null, strokes = []) {
    Object.assign(this.#canvas, { width, height });
    this.#ground = ground;
    this.#strokes = strokes;
    this.#paint();
  }

  /**
   * Put the pen down.
   * @param {string | null} colour null takes away what was drawn
   * @param {number} width
   * @param {[number, number]} point
   */
  down(colour, width, point) {
    this.#strokes.push({ colour: colour ?? GROUND, width, points: [point] });
    this.#draw(this.#strokes[this.#strokes.length - 1]);
  }

  /** @param {[number, number]} point */
  move(point) {
    const stroke = this.#strokes[this.#strokes.length - 1];
    stroke.points.push(point);
    this.#draw({ ...stroke, points: stroke.points.slice(-2) });
  }

  undo() {
    this.#strokes.pop();
    this.#paint();
  }

  clear() {
    this.#strokes = [];
    this.#ground = null;
    this.#paint();
  }

  #paint() {
    const { width, height } = this.#canvas;
    this.#context.fillStyle = GROUND;
    this.#context.fillRect(0, 0, width, height);
    if (this.#ground) this.#context.drawImage(this.#ground, 0, 0, width, height);
    this.#strokes.forEach((stroke) => this.#draw(stroke));
  }

  /** @param {Stroke} stroke */
  #draw({ colour, width, points }) {
    const context = this.#context;
    const style = { fillStyle: colour, strokeStyle: colour, lineWidth: width, lineCap: "round", lineJoin: "round" };
    Object.assign(context, style);
    context.beginPath();
    context.arc(...points[0], width / 2, 0, 2 * Math.PI); // a single point: a line of length 0 would not be drawn
    context.fill();
    context.beginPath();
    context.moveTo(...points[0]);
    points.forEach((point) => context.lineTo(...point));
    context.stroke();
  }
}
