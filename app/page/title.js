/** Shows the progress of requests in the tab's title, for a person in another tab. */

/** @typedef {import("./job.js").Job} Job */

const NAME = document.title;

export class Title {
  /** @type {Set<Job>} */
  #jobs = new Set();
  #unseen = 0; // finished while another tab was open

  constructor() {
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.#unseen = 0;
      this.#tell();
    });
  }

  /** Whether any request is on its way. */
  get busy() {
    return this.#jobs.size > 0;
  }

  /** @param {Job} job */
  follow(job) {
    this.#jobs.add(job);
    job.addEventListener("change", () => {
      if (!job.live && this.#jobs.delete(job) && document.hidden) this.#unseen += 1;
      this.#tell();
    });
    this.#tell();
  }

  #tell() {
    document.title = `${this.#progress()}${NAME}`;
  }

  #progress() {
    const jobs = [...this.#jobs];
    if (!jobs.length) return this.#unseen ? "Done · " : "";
    const share = jobs.reduce((sum, each) => sum + each.share, 0) / jobs.length;
    if (jobs.some((each) => each.phase === "running")) return `${Math.floor(share * 100)}% · `;
    return "Waiting · ";
  }
}
