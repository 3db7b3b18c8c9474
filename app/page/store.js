/** Recent results, in this browser (IndexedDB) and nowhere else. Where that is not to be had, until the page is left. */

/** @typedef {import("./job.js").Result} Result */

const NAME = "contour";
const RESULTS = "results";
const MOST = 30;

export class Store {
  /** @type {IDBDatabase | null} */
  #database = null;
  /** @type {Result[]} */
  #kept = [];

  /** What was kept, the newest first. */
  async open() {
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(RESULTS, { keyPath: "id" });
      this.#database = await settled(request);
      this.#kept = (await settled(this.#results("readonly").getAll())).reverse();
    } catch {
      this.#database = null; // a private window, perhaps
    }
    return this.#kept;
  }

  get all() {
    return this.#kept;
  }

  /**
   * Keep a result; the oldest go.
   * @param {Result} result
   */
  async add(result) {
    this.#kept = [result, ...this.#kept];
    while (this.#kept.length > MOST) await this.#drop();
    while (this.#kept.length && !(await this.#written(result))) await this.#drop();
  }

  async clear() {
    this.#kept = [];
    if (this.#database) await settled(this.#results("readwrite").clear());
  }

  async #drop() {
    const oldest = this.#kept.pop();
    if (this.#database && oldest) await settled(this.#results("readwrite").delete(oldest.id));
  }

  /** Whether there was room. @param {Result} result */
  async #written(result) {
    try {
      if (this.#database) await settled(this.#results("readwrite").put(result));
      return true;
    } catch {
      return false;
    }
  }

  /** @param {IDBTransactionMode} mode */
  #results(mode) {
    const database = /** @type {IDBDatabase} */ (this.#database);
    return database.transaction(RESULTS, mode).objectStore(RESULTS);
  }
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
