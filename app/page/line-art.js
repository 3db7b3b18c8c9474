/** Line art that is used as the edges. The model expects white lines on black. */

import { encoded, opened } from "./image.js";

const LIGHT = 128; // of 255: paper is lighter, a black background is darker
const SIDE = 256; // pixels; enough to judge by

/** Whether most of an image is light. @param {Blob} blob */
export async function isLight(blob) {
  const { data } = await pixels(blob, SIDE);
  let sum = 0;
  for (let i = 0; i < data.length; i += 4) sum += (data[i] + data[i + 1] + data[i + 2]) / 3;
  return sum / (data.length / 4) > LIGHT;
}

/** Whether an image is all black. @param {Blob} blob */
export async function isBlack(blob) {
  const { data } = await pixels(blob, Infinity); // at full size: scaling down loses lines of one pixel
  for (let i = 0; i < data.length; i += 4) if (data[i] || data[i + 1] || data[i + 2]) return false;
  return true;
}

/** The inverted image. @param {Blob} blob */
export async function inverted(blob) {
  const { canvas, context, image } = await pixels(blob, Infinity);
  for (let i = 0; i < image.data.length; i += 4) {
    for (let channel = i; channel < i + 3; channel++) image.data[channel] = 255 - image.data[channel];
  }
  context.putImageData(image, 0, 0);
  return encoded(canvas, "image/png");
}

/** An image on white, no larger than `most` pixels a side. @param {Blob} blob @param {number} most */
async function pixels(blob, most) {
  const { image: drawn, width, height } = await opened(blob);
  const scale = Math.min(1, most / Math.max(width, height));
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(drawn, 0, 0, canvas.width, canvas.height);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  return { canvas, context, image, data: image.data };
}
