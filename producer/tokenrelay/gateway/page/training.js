/** A model's training trace: loss and accuracy by epoch. */

import { ApiError, askJson } from "./api.js";
import { byId, el } from "./dom.js";
import { capitalised, percent } from "./format.js";

/**
 * Fetch a model's training trace and show it; hide the section for a model without one.
 *
 * @param {string} model empty for one without
 */
export async function showTraining(model) {
  const section = byId("training");
  if (section.dataset.model === model) return;
  section.dataset.model = model;
  section.hidden = true;
  if (!model) return;
  try {
    const trace = await askJson(`models/${encodeURIComponent(model)}/training`);
    if (section.dataset.model !== model) return;
    byId("training-body").replaceChildren(summary(trace), table(trace), el("p", { class: "hint" }, explanation(trace)));
    section.hidden = false;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    // Not worth an error message; selecting a model retries.
    delete section.dataset.model;
  }
}

/** @param {any} trace */
function summary(trace) {
  const numbers = [trace.parameters, trace.vocabulary, trace.train_conversations].map((number) => number.toLocaleString("en"));
  const text = `${capitalised(trace.model)}: ${numbers[0]} parameters and a vocabulary of ${numbers[1]} tokens, trained on ${numbers[2]} `
    + `conversations of ${trace.data} in ${Math.round(trace.seconds)} s of CPU time (seed ${trace.seed}).`;
  return el("p", { class: "muted" }, text);
}

/**
 * Has explicit ARIA roles: on narrow screens its rows are CSS grids, which lose the table semantics.
 *
 * @param {any} trace
 */
function table(trace) {
  const untrained = { epoch: 0, loss: trace.loss_before, accuracy: trace.accuracy_before, observation: "before training: guessing" };
  const heads = ["Epoch", "Loss", "Accuracy", "Observation"].map((name) => el("th", { scope: "col", role: "columnheader" }, name));
  const rows = [untrained, ...trace.epochs].map((epoch) =>
    el(
      "tr",
      { role: "row" },
      el("th", { scope: "row", role: "rowheader", class: "number" }, String(epoch.epoch)),
      el("td", { class: "measure loss", role: "cell" }, measured(epoch.loss.toFixed(epoch.loss < 1 ? 3 : 2), epoch.loss / trace.loss_before)),
      el("td", { class: "measure accuracy", role: "cell" }, measured(percent(epoch.accuracy), epoch.accuracy)),
      el("td", { class: "observation", role: "cell" }, capitalised(epoch.observation)),
    ),
  );
  const caption = el("caption", { class: "unseen" }, "Training trace");
  const head = el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...heads));
  return el("table", { class: "epochs", role: "table" }, caption, head, el("tbody", { role: "rowgroup" }, ...rows));
}

/** @param {string} value @param {number} part of 1 */
function measured(value, part) {
  const bar = el("span", { class: "measure-bar", "aria-hidden": "true" });
  bar.style.setProperty("--part", String(Math.min(1, part)));
  return el("div", {}, el("span", {}, value), bar);
}

/** @param {any} trace */
function explanation(trace) {
  return `Loss and accuracy of the next token are measured on ${trace.held_out_conversations.toLocaleString("en")} held-out conversations `
    + `(${trace.held_out_answer_tokens.toLocaleString("en")} answer tokens).`;
}
