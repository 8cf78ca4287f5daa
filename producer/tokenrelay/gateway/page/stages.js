/** The four stages with the run's data so far. */

import { byId, el, visible } from "./dom.js";
import { TokenFlow } from "./tokens.js";
import { count } from "./format.js";

export class Stages {
  #flow = new TokenFlow(byId("tokens"), byId("token-detail"), byId("alternatives"));

  /** @param {import("./run.js").Run} run */
  render(run) {
    const stages = [
      [run.prompt !== "", `${run.messages} × 1`],
      [run.promptTokens.length > 0, `1 × ${run.promptTokens.length.toLocaleString("en")}`],
      [run.tokens.length > 0, `1 × ${run.tokens.length.toLocaleString("en")}`],
      [run.ended !== null, "1 × 1"],
    ];
    const isThere = run.requestId !== "";
    const at = run.ended || !isThere ? -1 : run.started ? 2 : 1;
    for (const [number, stage] of [...byId("stages").children].entries()) {
      const [reached, shape] = stages[number];
      stage.classList.toggle("reached", reached);
      stage.classList.toggle("current", number === at);
      stage.querySelector(".shape").textContent = reached ? shape : "";
      stage.querySelector(".muted")?.toggleAttribute("hidden", number === 2 ? run.tokens.length > 0 : false);
    }
    fill("stage-input", run.prompt === "" ? null : el("p", { class: "text" }, run.prompt), "The prompt as submitted.");
    fill("stage-tokenization", promptTokens(run), waiting(run));
    this.#flow.render(run);
    fill("stage-assembly", answer(run), endedWithoutText(run));
  }
}

/** @param {string} id @param {Node | null} content @param {string} otherwise */
function fill(id, content, otherwise) {
  byId(id).querySelector(".body").replaceChildren(content ?? el("p", { class: "muted" }, otherwise));
}

/** @param {import("./run.js").Run} run */
function waiting(run) {
  if (run.requestId === "") return "The prompt's tokens in the model's vocabulary.";
  if (run.started) return "…";
  return run.ended ? "The request ended before a worker started." : "Waiting for a worker, which has the tokenizer.";
}

/** @param {import("./run.js").Run} run */
function promptTokens(run) {
  if (run.promptTokens.length === 0) return null;
  const kind = run.promptHasTexts ? "Tokens of the prompt" : "Token IDs of the prompt, which is too long to show as text";
  const chips = run.promptTokens.map((text) => el("li", {}, el("span", { class: "chip" }, ...visible(text))));
  return el("ol", { class: "tokens", "aria-label": kind }, ...chips);
}

/** @param {import("./run.js").Run} run */
function answer(run) {
  if (run.text === "") return null;
  const shown = el("p", { class: run.ended ? "text answer" : "text answer coming" }, run.text);
  const usage = run.ended?.usage;
  if (!usage) return shown;
  const recomputed = usage.recomputed_tokens ? `, ${count(usage.recomputed_tokens, "token")} recomputed after a takeover` : "";
  const summary = `${count(usage.completion_tokens, "token")} → 1 text, finish reason ${run.ended.finish_reason}${recomputed}`;
  return el("div", {}, shown, el("p", { class: "hint" }, summary));
}

/** @param {import("./run.js").Run} run */
function endedWithoutText(run) {
  return run.ended ? "The request ended before the first word." : "The answer: all tokens in order.";
}
