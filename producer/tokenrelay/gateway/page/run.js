/**
 * One request built from its stream's events: tokens, prediction trace, times. No DOM, no network.
 *
 * Lines and times equal those of `tokenrelay trace`; a test compares both.
 */

import { capitalised, count } from "./format.js";

/** @typedef {{id: string, event: string, data: any}} StreamEvent */
/**
 * @typedef {object} Line one of the prediction trace
 * @property {string} kind
 * @property {number | null} layer from 1; null if the line isn't a layer
 * @property {string} data
 * @property {any} token the token's fields, null for events
 * @property {number} at_us
 * @property {number} step_ms since the line before
 */

const TERMINAL = new Set(["completed", "incomplete", "failed", "cancelled", "expired"]);

/** @param {string} event */
export const isTerminal = (event) => TERMINAL.has(event);

export class Run {
  /** @type {StreamEvent[]} */
  events = [];
  /** @type {Line[]} */
  lines = [];
  /** @type {any[]} */
  tokens = [];
  /** @type {any[]} */
  migrations = [];
  /** @type {any} */
  started = null;
  /** @type {any} */
  ended = null;
  state = "queued";
  text = "";
  /** Number of lines that are layers. */
  layers = 0;
  /** Number of messages; 1 for a plain prompt. */
  messages = 1;
  /** Whether the prompt tokens' texts are known, or only their IDs. */
  promptHasTexts = true;
  /** @type {string[]} */
  promptTokens = [];
  /** @type {string | null} */
  model = null;

  /** @param {string} requestId @param {string} [prompt] */
  constructor(requestId, prompt = "") {
    this.requestId = requestId;
    this.prompt = prompt;
  }

  /**
   * Add the stream's next event; a repeated one is ignored.
   *
   * @param {StreamEvent} event
   */
  receive(event) {
    const last = this.events.at(-1);
    if (last && !isAfter(event.id, last.id)) return;
    this.events.push(event);
    const { data } = event;
    if (event.event === "token") {
      this.tokens.push(data);
      this.text += data.text;
    } else if (event.event === "started") {
      this.started = data;
      this.model = data.model;
    } else if (event.event === "migrated") {
      this.migrations.push(data);
    } else if (isTerminal(event.event)) {
      this.ended = { ...data, state: event.event };
      this.text += data.text ?? "";
    }
    this.state = this.ended?.state ?? (this.started ? "in_progress" : "queued");
    this.#addLine(event);
  }

  /** Add the prompt and its tokens from `requests/{id}/trace`; the stream lacks them. @param {any} trace */
  learn(trace) {
    const [input, tokenization] = trace.stages;
    this.prompt = input.data.join("\n");
    this.messages = input.data.length;
    this.promptTokens = tokenization.data;
    this.promptHasTexts = !tokenization.shape.includes("token ID");
    this.model = trace.model ?? this.model;
  }

  /** The reason why there's no answer, or null. */
  get problem() {
    if (!this.ended) return null;
    if (this.ended.state === "failed") return `${this.ended.code}: ${this.ended.message}`;
    if (this.ended.state === "cancelled") return `by ${this.ended.cancelled_by || "an unknown caller"}`;
    return this.ended.state === "expired" ? "the deadline passed before the first token" : null;
  }

  /** @param {StreamEvent} event */
  #addLine(event) {
    const [kind, data, isLayer] = described(event, this);
    const at_us = event.data.at_us;
    const before = this.lines.at(-1);
    const layer = isLayer ? ++this.layers : null;
    const token = event.event === "token" ? event.data : null;
    this.lines.push({ kind, layer, data, token, at_us, step_ms: before ? (at_us - before.at_us) / 1000 : 0 });
  }
}

/** @param {StreamEvent} event @param {Run} run @returns {[string, string, boolean]} kind, data, whether it's a layer */
function described({ event, data }, run) {
  switch (event) {
    case "queued":
      return ["Queued", "", false];
    case "started":
      return ["Tokenization", `1 prompt → ${count(data.prompt_tokens, "token")}`, true];
    case "token":
      return [data.index === 1 ? "Initial Token Generation" : "Streaming Token Generation", data.text, true];
    case "migrated":
      return ["Baton Pass", `to ${data.worker}, token ${data.resumed_at}`, false];
    case "completed":
    case "incomplete":
      return ["Output Assembly", `${count(run.tokens.length, "token")} → 1 text`, true];
    default:
      return [capitalised(event), run.problem ?? "", false];
  }
}

/**
 * The times of a run in milliseconds, on Redis's clock; null for events that haven't happened.
 *
 * @param {Run} run
 */
export function timesOf(run) {
  const queued_us = run.lines[0]?.at_us;
  /** @param {number | undefined} at_us */
  const since = (at_us) => (at_us === undefined || queued_us === undefined ? null : (at_us - queued_us) / 1000);
  const word = run.tokens.find((token) => token.text.trim() !== "");
  const gaps = run.tokens.slice(1).map((token, before) => (token.at_us - run.tokens[before].at_us) / 1000);
  const first_word_ms = since(word?.at_us);
  const total_ms = since(run.ended?.at_us);
  return {
    queue_wait_ms: since(run.started?.at_us),
    ttft_ms: since(run.tokens[0]?.at_us),
    first_word_ms,
    total_ms,
    gaps,
    median_gap_ms: median(gaps),
    sooner_ms: first_word_ms === null || total_ms === null ? null : total_ms - first_word_ms,
  };
}

/** @param {number[]} values */
export function median(values) {
  if (values.length === 0) return null;
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Whether entry `a` (token-event) comes after `b`. @param {string} a @param {string} b */
function isAfter(a, b) {
  const [tokenA, eventA] = a.split("-").map(Number);
  const [tokenB, eventB] = b.split("-").map(Number);
  return tokenA > tokenB || (tokenA === tokenB && eventA > eventB);
}
