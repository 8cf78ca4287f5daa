/** What streaming gains: time to first word against total time of this run. */

import { byId, el } from "./dom.js";
import { timesOf } from "./run.js";
import { ms, percent } from "./format.js";

/** @param {import("./run.js").Run} run */
export function renderInsight(run) {
  const times = timesOf(run);
  const { first_word_ms, sooner_ms, total_ms } = times;
  byId("insight").hidden = first_word_ms === null || sooner_ms === null;
  if (first_word_ms === null || sooner_ms === null || total_ms === null) return;
  const summary = el("p", { class: "insight" }, "The reader saw the first word ", el("strong", {}, `${ms(sooner_ms)} before`), " the whole answer.");
  byId("insight-body").replaceChildren(summary, timeline(times), statistics(times, run.tokens.length));
}

/** @param {ReturnType<typeof timesOf>} times */
function timeline(times) {
  const total_ms = Math.max(times.total_ms ?? 0, 0.001);
  const wait_ms = times.queue_wait_ms ?? 0;
  const first_ms = times.first_word_ms ?? total_ms;
  const parts = [
    ["wait", "queued", wait_ms],
    ["prefill", "to the first word", first_ms - wait_ms],
    ["stream", "streaming", total_ms - first_ms],
  ];
  const bar = el("div", { class: "timeline-bar", "aria-hidden": "true" });
  const legend = el("dl", { class: "legend" });
  for (const [name, label, length_ms] of parts) {
    const part = el("span", { class: String(name) });
    part.style.setProperty("--part", String(Number(length_ms) / total_ms));
    bar.append(part);
    const share = `${ms(Number(length_ms))} (${percent(Number(length_ms) / total_ms)})`;
    legend.append(el("div", { class: String(name) }, el("dt", {}, String(label)), el("dd", {}, share)));
  }
  return el("div", { class: "timeline" }, bar, legend);
}

/** @param {ReturnType<typeof timesOf>} times @param {number} tokens */
function statistics(times, tokens) {
  const between = times.median_gap_ms === null ? "–" : ms(times.median_gap_ms);
  const shown = [
    ["Time to first token", ms(times.ttft_ms ?? 0)],
    ["Total time", ms(times.total_ms ?? 0)],
    ["Between tokens, median", between],
    ["Tokens", tokens.toLocaleString("en")],
  ];
  return el("dl", { class: "figures" }, ...shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}
