/** This browser's recent requests, stored by ID. */

import { ApiError, askJson, pathOf } from "./api.js";
import { byId, el } from "./dom.js";
import { isTerminal } from "./run.js";
import { ago, stateName } from "./format.js";

/** @typedef {{requestId: string, prompt: string, model: string, state: string, at: number}} Entry */

const NAME = "tokenrelay.recent";
const MAX_ENTRIES = 12;
const MAX_PROMPT_CHARS = 160;

export class Recent {
  /** @param {(requestId: string) => void} open */
  constructor(open) {
    this.open = open;
    this.current = "";
    byId("forget").addEventListener("click", () => this.#write([]));
    // Written by another tab.
    addEventListener("storage", (event) => event.key === NAME && this.render());
    this.render();
  }

  /** @returns {Entry[]} */
  get entries() {
    try {
      const read = JSON.parse(localStorage.getItem(NAME) ?? "[]");
      return Array.isArray(read) ? read.filter((entry) => typeof entry?.requestId === "string") : [];
    } catch {
      return [];
    }
  }

  /** @param {string} requestId @param {string} prompt @param {string} model */
  add(requestId, prompt, model) {
    const entry = { requestId, prompt: prompt.slice(0, MAX_PROMPT_CHARS), model, state: "queued", at: Date.now() };
    this.#write([entry, ...this.entries.filter((other) => other.requestId !== requestId)].slice(0, MAX_ENTRIES));
  }

  /** @param {string} requestId @param {string} state */
  update(requestId, state) {
    const entries = this.entries;
    const entry = entries.find((other) => other.requestId === requestId);
    if (!entry || entry.state === state) return;
    entry.state = state;
    this.#write(entries);
  }

  /** @param {string} requestId */
  select(requestId) {
    this.current = requestId;
    this.render();
  }

  /** Update the states of requests that hadn't ended at the last check. */
  async refresh() {
    const open = this.entries.filter((entry) => !isTerminal(entry.state) && entry.state !== "gone");
    for (const { requestId } of open) {
      try {
        this.update(requestId, (await askJson(pathOf(requestId))).state);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (error.status === 404 || error.status === 410) this.update(requestId, "gone");
      }
    }
  }

  render() {
    const entries = this.entries;
    byId("recent-empty").hidden = entries.length > 0;
    byId("forget").hidden = entries.length === 0;
    byId("recent").replaceChildren(...entries.map((entry) => this.#item(entry)));
  }

  /** @param {Entry} entry */
  #item(entry) {
    const follow = (/** @type {MouseEvent} */ event) => {
      // With a modifier key it opens in a new tab.
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.open(entry.requestId);
    };
    const isCurrent = entry.requestId === this.current;
    return el(
      "li",
      {},
      el(
        "a",
        { href: `?request=${encodeURIComponent(entry.requestId)}`, onclick: follow, "aria-current": isCurrent ? "true" : null },
        el("span", { class: "prompt" }, entry.prompt || entry.requestId),
        el("span", { class: "about" }, el("span", { class: `dot ${entry.state}` }), `${stateName(entry.state)} · ${ago(entry.at)}`),
      ),
    );
  }

  /** @param {Entry[]} entries */
  #write(entries) {
    try {
      localStorage.setItem(NAME, JSON.stringify(entries));
    } catch {
      // Storage is full or forbidden: only the list is lost.
    }
    this.render();
  }
}
