/** Seeds, as text: numbers in JavaScript are exact only up to 2 ** 53. */

const LEAST = -(2n ** 63n); // as the service accepts them
const GREATEST = 2n ** 64n - 1n;
const RANDOM_SEEDS = 2 ** 32; // short enough to be read out

/** A random seed. */
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
