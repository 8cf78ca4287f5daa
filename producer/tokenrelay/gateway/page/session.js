/** The request on the page: follow, cancel, replay. */

import { ApiError, ask, askJson, pathOf } from "./api.js";
import { oncePerFrame } from "./dom.js";
import { follow, pause } from "./follow.js";
import { Run } from "./run.js";

const REPLAY_MS = 6000;
const LONGEST_REPLAY_WAIT_MS = 1500;
const QUEUE_POLL_MS = 1500;

/**
 * @typedef {object} Watcher
 * @property {(run: Run, replaying: boolean) => void} onChange in the next frame after a change
 * @property {(run: Run, event: import("./run.js").StreamEvent) => void} onEvent
 * @property {(run: Run, error: ApiError) => void} onError
 * @property {(lost: boolean) => void} onConnection
 * @property {(run: Run) => Promise<void>} onWaiting periodically until a worker has started
 */

export class Session {
  /** @type {Run | null} */
  run = null;
  #controller = new AbortController();
  #replaying = false;

  /** @param {Watcher} watcher */
  constructor(watcher) {
    this.watcher = watcher;
    this.changed = oncePerFrame(() => this.run && watcher.onChange(this.run, this.#replaying));
  }

  get isActive() {
    return this.run !== null && this.run.ended === null && !this.#replaying;
  }

  /** Stop following. The request itself continues. */
  close() {
    this.#controller.abort();
    this.#controller = new AbortController();
    this.#replaying = false;
    this.run = null;
  }

  /**
   * Follow a request from its first event to its end.
   *
   * @param {string} requestId
   * @param {{prompt?: string, model?: string}} [known]
   */
  async open(requestId, { prompt = "", model } = {}) {
    this.close();
    const { signal } = this.#controller;
    const run = (this.run = new Run(requestId, prompt));
    run.model = model ?? null;
    this.changed();
    try {
      if (!prompt) await this.#learn(run, signal);
      void this.#awaitStart(run, signal);
      const onEvent = (/** @type {import("./run.js").StreamEvent} */ event) => this.#receive(run, event, signal);
      await follow(requestId, { signal, onEvent, onConnection: this.watcher.onConnection });
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      this.watcher.onError(run, error);
    }
  }

  /** @throws {ApiError} */
  async cancel() {
    if (this.run) await ask(`${pathOf(this.run.requestId)}/cancel`, { method: "POST" });
  }

  /** Replay the received events with their original gaps, stretched. */
  async replay() {
    const before = this.run;
    if (!before?.ended) return;
    this.close();
    this.#replaying = true;
    const { signal } = this.#controller;
    const run = (this.run = new Run(before.requestId, before.prompt));
    const length_ms = (before.ended.at_us - before.lines[0].at_us) / 1000;
    const factor = Math.max(1, REPLAY_MS / Math.max(length_ms, 1));
    try {
      for (const [at, event] of before.events.entries()) {
        await pause(Math.min(before.lines[at].step_ms * factor, LONGEST_REPLAY_WAIT_MS), signal);
        run.receive(event);
        if (event.event === "started") Object.assign(run, promptOf(before));
        this.changed();
      }
    } catch (error) {
      if (signal.aborted) return;
      throw error;
    }
    Object.assign(run, promptOf(before));
    this.#replaying = false;
    this.changed();
  }

  /** @param {Run} run @param {import("./run.js").StreamEvent} event @param {AbortSignal} signal */
  #receive(run, event, signal) {
    run.receive(event);
    if (event.event === "started" && run.promptTokens.length === 0) void this.#learn(run, signal);
    this.watcher.onEvent(run, event);
    this.changed();
  }

  /** Fetch the prompt and its tokens. The stream doesn't wait for them. @param {Run} run @param {AbortSignal} signal */
  async #learn(run, signal) {
    try {
      run.learn(await askJson(`${pathOf(run.requestId)}/trace`, { signal }));
      this.changed();
    } catch (error) {
      if (!signal.aborted && !(error instanceof ApiError)) throw error;
    }
  }

  /** @param {Run} run @param {AbortSignal} signal */
  async #awaitStart(run, signal) {
    try {
      for (;;) {
        await pause(QUEUE_POLL_MS, signal);
        if (run.started || run.ended) return;
        await this.watcher.onWaiting(run);
      }
    } catch (error) {
      // If the gateway is unreachable, follow reports it.
      if (!signal.aborted && !(error instanceof ApiError)) throw error;
    }
  }
}

/** @param {Run} run */
const promptOf = ({ messages, promptTokens, promptHasTexts }) => ({ messages, promptTokens, promptHasTexts });
