/** Three questions on what was just seen. The answers are made of this run's own numbers. */

import { byId, el } from "./dom.js";
import { timesOf } from "./run.js";
import { count, ms, percent } from "./words.js";

/** @param {import("./run.js").Run} run */
export function renderQuestions(run) {
  const times = timesOf(run);
  const isReady = run.ended !== null && run.tokens.length > 0;
  byId("questions").hidden = !isReady;
  if (!isReady) return;
  const asked = [
    ["Why does the model stream its answer instead of waiting until it is whole?", whyStream(run, times)],
    ["What happened before the first token?", beforeTheFirst(run, times)],
    afterADeath(run),
  ];
  byId("questions-body").replaceChildren(
    ...asked.map(([question, answer]) => el("details", {}, el("summary", {}, question), el("p", {}, answer))),
  );
}

/** @param {import("./run.js").Run} run @param {ReturnType<typeof timesOf>} times */
function whyStream(run, times) {
  const made = "It makes one token at a time anyway, each from all before it, so waiting would only hide what is there. ";
  if (times.sooner_ms === null || times.first_word_ms === null || !times.total_ms) return made;
  return `${made}Here the first word was there after ${ms(times.first_word_ms)} and the whole answer of `
    + `${count(run.tokens.length, "token")} after ${ms(times.total_ms)}: streaming gave you something to read `
    + `${ms(times.sooner_ms)} sooner, ${percent(times.sooner_ms / times.total_ms)} of the time. The longer the answer, the larger that part.`;
}

/** @param {import("./run.js").Run} run @param {ReturnType<typeof timesOf>} times */
function beforeTheFirst(run, times) {
  const wait_ms = times.queue_wait_ms ?? 0;
  const prefill_ms = (times.ttft_ms ?? 0) - wait_ms;
  const rest = times.median_gap_ms === null ? "" : ` Each later token needs only itself computed: ${ms(times.median_gap_ms)} in the median`
    + `${times.median_gap_ms === 0 ? ", as most were published together" : ""}.`;
  return `The request waited ${ms(wait_ms)} for a worker. Then the model read all ${count(run.started?.prompt_tokens ?? 0, "token")} of the prompt `
    + `in one go (prefill), kept what it had computed for them (the KV cache) and picked the first token: ${ms(prefill_ms)}.${rest}`;
}

/** @param {import("./run.js").Run} run @returns {[string, string]} */
function afterADeath(run) {
  const prompt = run.started?.prompt_tokens ?? 0;
  const kept = `Redis holds the ${count(run.tokens.length, "token")} as entries 1-0 to ${run.tokens.length}-0`;
  if (run.migrations.length === 0) {
    const half = Math.max(1, Math.floor(run.tokens.length / 2));
    return [
      "What if the worker had died halfway?",
      `${kept}, each written the moment it was made. After token ${half} another worker would have read the ${prompt} prompt tokens and those `
        + `${half} at once and gone on with token ${half + 1}. What is drawn depends on the seed (${run.started?.seed}) and the position alone, so it would be the same token.`,
    ];
  }
  const pass = run.lines.find((line) => line.kind === "Baton Pass");
  const recomputed = run.ended.usage?.recomputed_tokens ?? 0;
  return [
    "The worker died. Why is nothing missing, and nothing there twice?",
    `${kept}, each written the moment it was made; an index can be written once only. ${run.migrations.at(-1).worker} took over `
      + `${ms(pass?.step_ms ?? 0)} after the last token, computed ${count(recomputed, "token")} again in one go and went on with token ${run.migrations.at(-1).resumed_at}.`,
  ];
}
