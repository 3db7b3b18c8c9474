/** Makes an image that the service accepts: PNG, JPEG or WebP, and not too large. */

import { Failure } from "./service.js";

const SIDE = 2048; // pixels; models use less, and a photograph from a phone would take long to upload
const FEW = 2 ** 20; // pixels; a smaller image keeps its size, so that the error about a panorama names its own size
const DRAWN_SIDE = 1024; // pixels of an SVG without a size
const QUALITY = 0.95;
const SMALLER = 0.7; // scale by this until the file is small enough

const ACCEPTED = ["image/png", "image/jpeg", "image/webp"];
const PHOTOGRAPHS = ["image/jpeg", "image/heic", "image/avif"]; // lossy already: a PNG of them is large and no better

/** Kinds of file by how they begin, as their names may be wrong: [pattern of the first bytes, type, what people call it]. */
const KINDS = /** @type {[RegExp, string, string][]} */ ([
  [/^\x89PNG/, "image/png", "PNG"],
  [/^\xff\xd8\xff/, "image/jpeg", "JPEG"],
  [/^RIFF....WEBP/s, "image/webp", "WebP"],
  [/^GIF8/, "image/gif", "GIF"],
  [/^BM/, "image/bmp", "BMP"],
  [/^....ftypavi[fs]/s, "image/avif", "AVIF"],
  [/^....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)/s, "image/heic", "HEIC"],
  [/^(?:II\*\0|MM\0\*)/, "image/tiff", "TIFF"],
  [/^(?:\xff\x0a|\0\0\0\x0cJXL )/, "image/jxl", "JPEG XL"],
  [/^8BPS/, "image/vnd.adobe.photoshop", "Photoshop"],
  [/^%PDF/, "application/pdf", "PDF"],
]);

/**
 * The same image, made anew only where it is too large, or of a kind that only the browser reads.
 * Raises Failure where it cannot be read.
 * @param {Blob} blob
 * @param {number} bytes that are accepted
 * @returns {Promise<Blob>}
 */
export async function fitting(blob, bytes) {
  const [type] = await kindOf(blob);
  const { image, width, height } = await opened(blob);
  const scale = width * height > FEW ? Math.min(1, SIDE / Math.max(width, height)) : 1;
  if (scale === 1 && ACCEPTED.includes(type) && blob.size <= bytes) return blob.type === type ? blob : new Blob([blob], { type });
  let made = await drawn(image, width * scale, height * scale, PHOTOGRAPHS.includes(type) || scale < 1 ? "image/jpeg" : "image/png");
  for (let smaller = scale; made.size > bytes && smaller * width > 64; smaller *= SMALLER) {
    made = await drawn(image, width * smaller, height * smaller, "image/jpeg");
  }
  return made;
}

/**
 * The file of what is on a canvas.
 * @param {HTMLCanvasElement} canvas
 * @param {string} type
 * @returns {Promise<Blob>}
 */
export function encoded(canvas, type) {
  return new Promise((resolve, reject) => {
    const failure = new Failure({ title: "", detail: "The image is too large for this browser." });
    canvas.toBlob((made) => (made ? resolve(made) : reject(failure)), type, QUALITY);
  });
}

/**
 * An image that can be drawn, and its size. Raises Failure.
 * @param {Blob} blob
 */
export async function opened(blob) {
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  try {
    await image.decode();
  } catch {
    throw await unreadable(blob);
  } finally {
    URL.revokeObjectURL(image.src);
  }
  return { image, width: image.naturalWidth || DRAWN_SIDE, height: image.naturalHeight || DRAWN_SIDE };
}

/** Type and name of a kind of file; for an unknown kind, the browser's type and "". @param {Blob} blob */
async function kindOf(blob) {
  const bytes = new Uint8Array(await blob.slice(0, 16).arrayBuffer());
  const beginning = String.fromCharCode(...bytes);
  const [, type, name] = KINDS.find(([pattern]) => pattern.test(beginning)) ?? [null, blob.type, ""];
  return [type, name];
}

/** @param {HTMLImageElement} image @param {number} width @param {number} height @param {string} type */
function drawn(image, width, height, type) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return encoded(canvas, type);
}

/** @param {Blob} blob */
async function unreadable(blob) {
  const [type, name] = await kindOf(blob);
  return new Failure({ title: "", detail: reason(type, name) });
}

/** Why a file cannot be used, and what to do. @param {string} type @param {string} name */
function reason(type, name) {
  if (type === "image/heic") {
    return (
      "This browser can't read HEIC images. Save the photo as JPEG and choose it again. " +
      "iPhones take JPEG with Settings, Camera, Formats, Most Compatible."
    );
  }
  if (name && ACCEPTED.includes(type)) return `This ${name} file can't be read. It may be damaged.`;
  if (name) return `This browser can't read ${name} files. Save it as PNG or JPEG and choose it again.`;
  return "That file isn't an image. Choose a PNG, JPEG or WebP.";
}
