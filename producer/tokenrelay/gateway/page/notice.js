/** What went wrong, or is missing, in a sentence; with a way to try again where that may help. */

import { byId, el } from "./dom.js";
import { capitalised } from "./words.js";

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
export function complain(error, retry) {
  clearNotice();
  const lead = { 0: "Not connected. ", 401: "Not allowed in. ", 429: "Too much at a time. ", 503: "Not available right now. " }[error.status] ?? "";
  const notice = el("div", { class: "notice problem" }, el("p", {}, el("strong", {}, lead), sentence(error.message)));
  if (retry && error.passes) notice.append(retryButton(retry, error.retryAfterS ?? 0));
  byId("notice").append(notice);
}

/** A button that can be pressed once the gateway wants to be asked again. @param {() => void} retry @param {number} after_s */
function retryButton(retry, after_s) {
  const button = /** @type {HTMLButtonElement} */ (el("button", { type: "button", onclick: retry }));
  const end = Date.now() + after_s * 1000;
  // Hidden from the live region: a screen reader needn't hear every second.
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
