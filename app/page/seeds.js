/** Seeds, as text: they may be larger than numbers are exact. */

const LEAST = -(2n ** 63n); // as the service takes them
const GREATEST = 2n ** 64n - 1n;
const RANDOM_SEEDS = 2 ** 32; // short enough to be told to somebody

/** One by chance. */
export function randomSeed() {
  return String(Math.floor(Math.random() * RANDOM_SEEDS));
}

/** @param {string} text */
export function isSeed(text) {
  return /^-?\d{1,20}$/.test(text) && BigInt(text) >= LEAST && BigInt(text) <= GREATEST;
}

/**
 * The seed of image `n` of several: after the greatest comes the least.
 * @param {string} seed of the first
 * @param {number} n
 */
export function seedOf(seed, n) {
  return String(((BigInt(seed) - LEAST + BigInt(n)) % (GREATEST - LEAST + 1n)) + LEAST);
}
