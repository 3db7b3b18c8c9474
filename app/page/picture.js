/** A picture as the service takes it: PNG, JPEG or WebP, and not larger than makes sense. */

import { Failure } from "./service.js";

const TAKEN = ["image/png", "image/jpeg", "image/webp"];
const SIDE = 2048; // pixels; models see less, and a telephone's photograph would take long on its way
const QUALITY = 0.95;

/**
 * The same picture, made anew only where it is too large, or of a kind that only the browser reads.
 * Raises Failure where it is none.
 * @param {Blob} blob
 * @param {number} bytes that are taken
 * @returns {Promise<Blob>}
 */
export async function fitting(blob, bytes) {
  const { image, width, height } = await opened(blob);
  const scale = Math.min(1, SIDE / Math.max(width, height));
  if (scale === 1 && TAKEN.includes(blob.type) && blob.size <= bytes) return blob;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const lossless = !["image/jpeg", "image/heic", "image/avif"].includes(blob.type) && scale === 1;
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return encoded(canvas, lossless ? "image/png" : "image/jpeg");
}

/**
 * The file of what is on a canvas.
 * @param {HTMLCanvasElement} canvas
 * @param {string} type
 * @returns {Promise<Blob>}
 */
export function encoded(canvas, type) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((made) => (made ? resolve(made) : reject(unreadable())), type, QUALITY);
  });
}

/**
 * A picture that can be drawn, and its size. Raises Failure.
 * @param {Blob} blob
 */
export async function opened(blob) {
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  try {
    await image.decode();
  } catch {
    throw unreadable();
  } finally {
    URL.revokeObjectURL(image.src);
  }
  return { image, width: image.naturalWidth, height: image.naturalHeight };
}

function unreadable() {
  return new Failure({ title: "This is no picture", detail: "This file cannot be read as a picture. Try a PNG, JPEG or WebP." });
}
