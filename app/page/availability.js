/** Whether the server can make images now. While it cannot, the page says why, and polls. */

import { byId, say } from "./dom.js";
import { readiness } from "./service.js";

const PAUSE = 2500; // ms

export class Availability {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #back;

  /** @param {() => void} back is called when the server can be reached again */
  constructor(back) {
    this.#back = back;
    byId("server-retry").onclick = () => this.look();
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && !byId("server").hidden) this.look();
    });
  }

  async look() {
    clearTimeout(this.#timer);
    const reason = await why();
    say(byId("server-text"), reason);
    const wasAway = !byId("server").hidden;
    byId("server").hidden = !reason;
    if (reason && !document.hidden) this.#timer = setTimeout(() => this.look(), PAUSE);
    if (!reason && wasAway) this.#back();
  }
}

/** Why it can make no images now; empty if it can. */
async function why() {
  try {
    const { ready, draining } = await readiness();
    if (draining) return "The server is shutting down and accepts no new requests.";
    return ready !== false ? "" : "The model is still loading. You can send requests already; they wait.";
  } catch (failure) {
    const { title, detail } = /** @type {any} */ (failure);
    return `${title}. ${detail}`;
  }
}
