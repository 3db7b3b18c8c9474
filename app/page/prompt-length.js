/**
 * About how many tokens CLIP makes of a text: an estimate, as its vocabulary is larger than this whole page.
 *
 * English is within a tenth of the truth. Other languages are cut into smaller pieces, and so are their estimates.
 */

export const WINDOW = 75; // tokens that the text encoder reads; the configured suffix counts as well

const PIECES = /\p{L}[\p{L}\p{M}]*|\p{N}|[^\s\p{L}\p{N}]+/gu;
const LETTERS_OF_A_TOKEN = 9; // of an English word: nearly every word is one token

/** @param {string} text */
export function tokens(text) {
  return Math.ceil((text.match(PIECES) ?? []).reduce((sum, piece) => sum + cost(piece), 0));
}

/** @param {string} piece a word, a digit, or some punctuation */
function cost(piece) {
  if (!/^\p{L}/u.test(piece)) return 1;
  if (/^[a-z]+$/i.test(piece)) return Math.ceil(piece.length / LETTERS_OF_A_TOKEN);
  if (/^\p{Script=Latin}+$/u.test(piece)) return Math.ceil(piece.length / 3);
  return piece.length * (/[\u2e80-\uffff]/.test(piece) ? 2 : 1.2); // Chinese and Japanese; Cyrillic, Arabic and others
}
