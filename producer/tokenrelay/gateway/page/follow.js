/**
 * Follows a request's stream to its end, reconnecting as needed and resuming after the last received event.
 *
 * Uses fetch because EventSource can't send an API key and doesn't expose error responses.
 */

import { ApiError, ask, pathOf } from "./api.js";
import { isTerminal } from "./run.js";
import { EventParser } from "./sse.js";

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5000;
/** The gateway sends comments into an idle stream: a connection without data for this long is dead. */
const SILENCE_MS = 60_000;

/**
 * Returns after the terminal event, or when the gateway reports that there are no more events.
 *
 * @param {string} requestId
 * @param {object} options
 * @param {AbortSignal} options.signal
 * @param {(event: import("./run.js").StreamEvent) => void} options.onEvent
 * @param {(lost: boolean) => void} options.onConnection called when the connection is lost and when it's restored
 * @throws {ApiError} if a retry wouldn't help
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
      if (signal.aborted || (error instanceof ApiError && !error.isTransient)) throw error;
      // Any other error in the body is a lost connection: the stream is durable, so resume after lastId.
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
 * Resolves after `ms`, or at once when the browser is online again.
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
