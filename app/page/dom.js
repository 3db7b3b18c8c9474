/** Helpers for the document. */

/**
 * The element with this id.
 * @param {string} id
 * @returns {any}
 */
export const byId = (id) => document.getElementById(id);

/**
 * Make an element. Names with a dash, and `role` and `for`, become attributes, all others properties.
 * @param {string} tag
 * @param {Record<string, unknown>} [properties]
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, String(value));
    else Reflect.set(element, name, value);
  }
  element.append(...children);
  return element;
}

/**
 * The elements of a copied template that have a `data-part`, by its name; `root` is the first element.
 * @param {string} id of the template
 * @returns {Record<string, any>}
 */
export function parts(id) {
  const root = byId(id).content.firstElementChild.cloneNode(true);
  const named = [...root.querySelectorAll("[data-part]")].map((each) => [each.dataset.part, each]);
  return { root, ...Object.fromEntries(named) };
}

/**
 * Set text only where it changes, as a screen reader may read it anew otherwise.
 * @param {Element} element
 * @param {string} text
 */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Tell who listens instead of looking. Seldom: each call interrupts.
 * @param {string} text
 */
export function announce(text) {
  byId("status").textContent = "";
  // A screen reader repeats a message only if the text was different in between.
  setTimeout(() => say(byId("status"), text), 50);
}

/**
 * Show a blob in an image, and forget what it showed before.
 * @param {HTMLImageElement} image
 * @param {Blob | null} blob
 */
export function show(image, blob) {
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  if (blob) image.src = URL.createObjectURL(blob);
  else image.removeAttribute("src");
  image.hidden = !blob;
}
