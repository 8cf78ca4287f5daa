/** Notices and errors above the page, with a retry button for transient errors. */

import { byId, el } from "./dom.js";
import { capitalised } from "./format.js";

/** @type {ReturnType<typeof setInterval> | undefined} */
let countdown;

export function clearNotice() {
  clearInterval(countdown);
  byId("notice").replaceChildren();
}

/** @param {string} text */
export function inform(text) {
  clearNotice();
  byId("notice").append(el("p", { class: "notice" }, text));
}

/**
 * @param {import("./api.js").ApiError} error
 * @param {() => void} [retry]
 */
export function showProblem(error, retry) {
  clearNotice();
  const lead = { 0: "Not connected. ", 401: "Unauthorized. ", 429: "Too many requests. ", 503: "Unavailable. " }[error.status] ?? "";
  const notice = el("div", { class: "notice problem" }, el("p", {}, el("strong", {}, lead), sentence(error.message)));
  if (retry && error.isTransient) notice.append(retryButton(retry, error.retryAfterS ?? 0));
  byId("notice").append(notice);
}

/** A retry button, enabled after the gateway's Retry-After. @param {() => void} retry @param {number} after_s */
function retryButton(retry, after_s) {
  const button = /** @type {HTMLButtonElement} */ (el("button", { type: "button", onclick: retry }));
  const end = Date.now() + after_s * 1000;
  // Excluded from the live region, so that a screen reader doesn't announce the countdown.
  const tick = () => {
    const left_ms = end - Date.now();
    button.disabled = left_ms > 0;
    button.textContent = left_ms > 0 ? `Try again in ${Math.ceil(left_ms / 1000)} s` : "Try again";
    if (left_ms <= 0) clearInterval(countdown);
  };
  countdown = setInterval(tick, 250);
  tick();
  return el("div", { "aria-live": "off" }, button);
}

/** @param {string} message */
function sentence(message) {
  return capitalised(message) + (/[.!?:]$/u.test(message) ? "" : ".");
}
