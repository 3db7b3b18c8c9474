/** The data that this browser keeps, in IndexedDB only. Some private windows have none; then nothing is kept. */

/** @typedef {import("./job.js").Result} Result */

const MOST = 30; // results

/** The records of one database, by their `id`. */
export class Table {
  /** @type {IDBDatabase | null} */
  #database = null;
  #name;
  #records;

  /** @param {string} name of the database @param {string} records what they are called in it */
  constructor(name, records) {
    this.#name = name;
    this.#records = records;
  }

  /** All records, by ascending `id`. @returns {Promise<any[]>} */
  async open() {
    try {
      const request = indexedDB.open(this.#name, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(this.#records, { keyPath: "id" });
      this.#database = await finished(request);
      return await finished(this.#database.transaction(this.#records).objectStore(this.#records).getAll());
    } catch {
      this.#database = null;
      return [];
    }
  }

  /** Store a record; false if there was no room. @param {any} record */
  put = (record) => this.#write((records) => records.put(record));

  /** @param {IDBValidKey} id */
  delete = (id) => this.#write((records) => records.delete(id));

  clear = () => this.#write((records) => records.clear());

  /** @param {(records: IDBObjectStore) => void} change */
  async #write(change) {
    if (!this.#database) return true;
    try {
      const transaction = this.#database.transaction(this.#records, "readwrite");
      change(transaction.objectStore(this.#records));
      // A request may succeed although its transaction fails. Only the end of the transaction shows whether there was room.
      await new Promise((resolve, reject) => {
        transaction.oncomplete = resolve;
        transaction.onabort = reject;
      });
      return true;
    } catch {
      return false;
    }
  }
}

/** Recent results, the newest first. */
export class Store {
  #table = new Table("contour", "results");
  /** @type {Result[]} */
  #kept = [];

  async open() {
    // Before version 0.1 a record called its image `picture`.
    this.#kept = (await this.#table.open()).reverse().map((record) => ({ image: record.picture, ...record }));
    return this.#kept;
  }

  get all() {
    return this.#kept;
  }

  /** Keep a result, and remove the oldest. @param {Result} result */
  async add(result) {
    this.#kept = [result, ...this.#kept].sort((one, other) => other.id - one.id);
    while (this.#kept.length > MOST) await this.#dropOldest();
    while (this.#kept.length && !(await this.#table.put(result))) await this.#dropOldest();
  }

  /** @param {Result} result */
  async remove(result) {
    this.#kept = this.#kept.filter((each) => each.id !== result.id);
    await this.#table.delete(result.id);
  }

  async clear() {
    this.#kept = [];
    await this.#table.clear();
  }

  async #dropOldest() {
    const oldest = this.#kept.pop();
    if (oldest) await this.#table.delete(oldest.id);
  }
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
