/** The tokens that the model could have drawn in place of one, with their probabilities. */

import { el, visible } from "./dom.js";
import { probability } from "./format.js";

/** @typedef {{token_id: number, logprob: number, text: string, bytes: number[]}} Alternative */

/** So many are read out with a token. */
const READ_OUT = 5;

/**
 * Likeliest first, the drawn one among them or last; empty where no log-probabilities were asked for.
 *
 * @param {{token_id: number, logprobs?: Alternative[]}} token
 * @returns {Alternative[]}
 */
export function alternativesOf(token) {
  const [drawn, ...likeliest] = token.logprobs ?? [];
  if (!drawn) return [];
  return likeliest.some((each) => each.token_id === drawn.token_id) ? likeliest : [...likeliest, drawn];
}

/** A list with a bar for each. @param {{token_id: number, logprobs?: Alternative[]}} token */
export function alternativesList(token) {
  const items = alternativesOf(token).map((each) => {
    const isDrawn = each.token_id === token.token_id;
    const bar = el("span", { class: "share", "aria-hidden": "true" });
    bar.style.setProperty("--part", String(Math.exp(each.logprob)));
    const text = el("span", { class: "token" }, ...(isWhole(each) ? visible(each.text) : [nameOf(each)]));
    const share = el("span", { class: "number" }, probability(each.logprob), isDrawn ? " drawn" : null);
    return el("li", { class: isDrawn ? "drawn" : null }, text, bar, share);
  });
  return el("ol", { "aria-label": "Likeliest tokens here" }, ...items);
}

/** In words. @param {{token_id: number, logprobs?: Alternative[]}} token */
export function alternativesText(token) {
  const [drawn, ...likeliest] = token.logprobs ?? [];
  if (!drawn) return "";
  const others = likeliest.filter((each) => each.token_id !== drawn.token_id).slice(0, READ_OUT);
  const named = others.map((each) => `${nameOf(each)} ${probability(each.logprob)}`).join(", ");
  return ` Probability ${probability(drawn.logprob)}${named ? `; instead of it ${named}` : ""}.`;
}

/** @param {Alternative} each */
const isWhole = (each) => each.text !== "" && !each.text.includes("\uFFFD");

/** Its text, or its bytes where they are a part of a character. @param {Alternative} each */
function nameOf(each) {
  if (isWhole(each)) return `“${each.text}”`;
  if (each.bytes.length === 0) return `ID ${each.token_id}`;
  return `bytes ${each.bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")}`;
}
