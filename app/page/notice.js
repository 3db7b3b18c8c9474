/** A line about what just happened, with a button to undo it. It disappears after some seconds. */

import { byId, say } from "./dom.js";

const SHOWN = 12_000; // ms

/** @type {ReturnType<typeof setTimeout> | undefined} */
let hiding;

/**
 * @param {string} text
 * @param {() => void} undo
 */
export function notice(text, undo) {
  const [bar, button] = [byId("notice"), byId("notice-undo")];
  say(byId("notice-text"), text);
  bar.hidden = false;
  button.onclick = () => {
    hide();
    undo();
  };
  clearTimeout(hiding);
  hiding = setTimeout(function later() {
    if (bar.matches(":hover, :focus-within")) hiding = setTimeout(later, SHOWN);
    else hide();
  }, SHOWN);
}

function hide() {
  clearTimeout(hiding);
  byId("notice").hidden = true;
}
