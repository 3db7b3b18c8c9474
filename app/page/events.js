/** Server-sent events from a fetch: EventSource cannot POST (HTML Living Standard, 9.2.6). */

/** @typedef {{name: string, data: string}} ServerEvent */

/** Parses chunks of text into events. */
export class Parser {
  #rest = "";
  #name = "";
  /** @type {string[]} */
  #data = [];

  /**
   * The events that this piece completes.
   * @param {string} text
   * @returns {ServerEvent[]}
   */
  push(text) {
    const events = [];
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      const event = this.#line(line);
      if (event) events.push(event);
    }
    return events;
  }

  /** @param {string} line */
  #line(line) {
    if (line === "") return this.#complete();
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line) ?? [];
    if (field === "event") this.#name = value;
    if (field === "data") this.#data.push(value);
    return null;
  }

  #complete() {
    const event = this.#data.length ? { name: this.#name || "message", data: this.#data.join("\n") } : null;
    this.#name = "";
    this.#data = [];
    return event;
  }
}

const QUIET = 50_000; // ms; the service sends a comment at least every 15 s, so the connection is lost

/**
 * The events of a response, as they come. Throws when nothing has come for `quiet` ms: a network that is gone says so late.
 * @param {ReadableStream<Uint8Array>} body
 * @param {number} quiet
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* events(body, quiet = QUIET) {
  const parser = new Parser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await within(reader.read(), quiet);
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have ended or failed already
  }
}

/**
 * @template T
 * @param {Promise<T>} promise
 * @param {number} time ms
 * @returns {Promise<T>}
 */
function within(promise, time) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("nothing came")), time);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
