/**
 * A request's stream, followed to its end over any number of connections: each goes on behind the last event it has.
 *
 * fetch and not EventSource: that can't send an API key, and doesn't say why it was refused.
 */

import { ApiError, ask, pathOf } from "./api.js";
import { isTerminal } from "./run.js";
import { EventParser } from "./sse.js";

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5000;
/** The gateway writes comments into a stream where nothing happens: a connection silent for so long is dead. */
const SILENCE_MS = 60_000;

/**
 * Returns once the terminal event was handed over, or the gateway says that nothing more will come.
 *
 * @param {string} requestId
 * @param {object} options
 * @param {AbortSignal} options.signal
 * @param {(event: import("./run.js").StreamEvent) => void} options.onEvent
 * @param {(lost: boolean) => void} options.onConnection told when the connection is lost, and when it's there again
 * @throws {ApiError} where trying again wouldn't help
 */
export async function follow(requestId, { signal, onEvent, onConnection }) {
  let lastId = "";
  let waitMs = FIRST_WAIT_MS;
  for (;;) {
    try {
      const headers = { Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) };
      const response = await ask(`${pathOf(requestId)}/events`, { headers, signal });
      onConnection(false);
      if (response.status === 204 || !response.body) return;
      for await (const { id, event, data } of events(response.body)) {
        lastId = id;
        waitMs = FIRST_WAIT_MS;
        onEvent({ id, event, data: JSON.parse(data) });
        if (isTerminal(event)) return;
      }
    } catch (error) {
      if (signal.aborted || (error instanceof ApiError && !error.passes)) throw error;
      // What else goes wrong in the middle of a body is the connection: the stream is durable, so go on from lastId.
      if (error instanceof ApiError && error.retryAfterS) waitMs = Math.max(waitMs, error.retryAfterS * 1000);
    }
    onConnection(true);
    await pause(waitMs, signal);
    waitMs = Math.min(waitMs * 2, LONGEST_WAIT_MS);
  }
}

/** @param {ReadableStream<Uint8Array>} body */
async function* events(body) {
  const reader = body.pipeThrough(/** @type {ReadableWritablePair<string, Uint8Array>} */ (new TextDecoderStream())).getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const silence = setTimeout(() => void reader.cancel().catch(() => undefined), SILENCE_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(silence));
      if (done) return;
      yield* parser.feed(value);
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/**
 * Comes back after `ms`, or at once when the browser is online again.
 *
 * @param {number} ms
 * @param {AbortSignal} signal
 */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(finish, ms);
    addEventListener("online", finish);
    signal.addEventListener("abort", finish);
    function finish() {
      clearTimeout(timer);
      removeEventListener("online", finish);
      signal.removeEventListener("abort", finish);
      if (signal.aborted) reject(signal.reason);
      else resolve(undefined);
    }
  });
}
