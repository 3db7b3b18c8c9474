/** Saves results as files: one image, or several in a ZIP. */

import { fileName } from "./wording.js";
import { zipped } from "./zip.js";

/** @typedef {import("./job.js").Result} Result */

const LOADED = 60_000; // ms after which the browser has read the file

/** @param {Result[]} results */
export async function saveAll(results) {
  const files = results.flatMap((result) =>
    result.images.map((file, i) => ({ name: fileName(result, i), file, date: new Date(result.id) })),
  );
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await zipped(files));
  link.download = `contour-${files.length}-images.zip`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), LOADED);
}
