/** Three questions about the run, answered with its own numbers. */

import { byId, el } from "./dom.js";
import { timesOf } from "./run.js";
import { count, ms, percent } from "./format.js";

/** @param {import("./run.js").Run} run */
export function renderQuestions(run) {
  const times = timesOf(run);
  const isReady = run.ended !== null && run.tokens.length > 0;
  byId("questions").hidden = !isReady;
  if (!isReady) return;
  const asked = [
    ["Why does the model stream its answer instead of waiting until it's complete?", whyStream(run, times)],
    ["What happened before the first token?", beforeTheFirst(run, times)],
    afterADeath(run),
  ];
  byId("questions-body").replaceChildren(
    ...asked.map(([question, answer]) => el("details", {}, el("summary", {}, question), el("p", {}, answer))),
  );
}

/** @param {import("./run.js").Run} run @param {ReturnType<typeof timesOf>} times */
function whyStream(run, times) {
  const reason = "It generates one token at a time, each from all tokens before it, so waiting would only delay what is already there. ";
  if (times.sooner_ms === null || times.first_word_ms === null || !times.total_ms) return reason;
  return `${reason}Here the first word arrived after ${ms(times.first_word_ms)} and the whole answer of `
    + `${count(run.tokens.length, "token")} after ${ms(times.total_ms)}: with streaming you could start reading `
    + `${ms(times.sooner_ms)} earlier, ${percent(times.sooner_ms / times.total_ms)} of the total time. This share grows with the answer's length.`;
}

/** @param {import("./run.js").Run} run @param {ReturnType<typeof timesOf>} times */
function beforeTheFirst(run, times) {
  const wait_ms = times.queue_wait_ms ?? 0;
  const prefill_ms = (times.ttft_ms ?? 0) - wait_ms;
  const rest = times.median_gap_ms === null ? "" : ` Each later token takes one step: a median of ${ms(times.median_gap_ms)}`
    + `${times.median_gap_ms === 0 ? ", as most were published together" : ""}.`;
  return `The request waited ${ms(wait_ms)} for a worker. Then the model read all ${count(run.started?.prompt_tokens ?? 0, "token")} of the prompt `
    + `at once (prefill), kept their keys and values (the KV cache) and drew the first token: ${ms(prefill_ms)}.${rest}`;
}

/** @param {import("./run.js").Run} run @returns {[string, string]} */
function afterADeath(run) {
  const prompt = run.started?.prompt_tokens ?? 0;
  const kept = `Redis holds the ${count(run.tokens.length, "token")} as entries 1-0 to ${run.tokens.length}-0`;
  if (run.migrations.length === 0) {
    const half = Math.max(1, Math.floor(run.tokens.length / 2));
    return [
      "What if the worker had died mid-answer?",
      `${kept}, each written as soon as it was generated. After token ${half} another worker would have computed the ${prompt} prompt tokens and those `
        + `${half} at once and resumed at token ${half + 1}. Each draw depends only on the seed (${run.started?.seed}) and the position, so it would be the same token.`,
    ];
  }
  const pass = run.lines.find((line) => line.kind === "Baton Pass");
  const recomputed = run.ended.usage?.recomputed_tokens ?? 0;
  return [
    "The worker died. Why is no token missing or repeated?",
    `${kept}, each written as soon as it was generated, and an index can be written only once. ${run.migrations.at(-1).worker} took over `
      + `${ms(pass?.step_ms ?? 0)} after the last token, recomputed ${count(recomputed, "token")} at once and resumed at token ${run.migrations.at(-1).resumed_at}.`,
  ];
}
