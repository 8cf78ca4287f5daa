/** The request's state, its buttons, and screen reader announcements. */

import { byId, el } from "./dom.js";
import { isTerminal } from "./run.js";
import { stateName } from "./format.js";

const MAX_SPOKEN_CHARS = 500;

/**
 * @param {import("./run.js").Run} run
 * @param {{isActive: boolean, isReplaying: boolean, isDemo: boolean, isLost: boolean}} now
 */
export function renderStatus(run, { isActive, isReplaying, isDemo, isLost }) {
  const state = byId("state");
  state.hidden = false;
  state.className = `state ${run.state}`;
  const lost = isLost && isActive ? "Connection lost, reconnecting" : null;
  const text = lost ?? (isReplaying ? "Replay" : run.problem ? `${stateName(run.state)}, ${run.problem}` : stateName(run.state));
  if (state.textContent !== text) state.textContent = text;
  const hadFocus = document.activeElement;
  byId("cancel").hidden = !isActive;
  byId("kill").hidden = !(isActive && isDemo);
  byId("replay").hidden = !run.ended || isReplaying || run.tokens.length === 0;
  // Move the focus from a button that disappears to its replacement.
  if (hadFocus instanceof HTMLElement && hadFocus.hidden && !byId("replay").hidden) byId("replay").focus();
  renderRequest(run);
}

/** @param {import("./run.js").Run} run */
function renderRequest(run) {
  const line = byId("request-line");
  line.hidden = false;
  const worker = (run.migrations.at(-1) ?? run.started)?.worker;
  const about = [run.model && `model ${run.model}`, worker && `worker ${worker}`, run.started && `seed ${run.started.seed}`];
  const details = about.filter(Boolean).join(" · ");
  if (line.dataset.shown === run.requestId + details) return;
  line.dataset.shown = run.requestId + details;
  line.replaceChildren("Request ", el("code", {}, run.requestId), details ? ` · ${details}` : "");
}

/** Clear the status: no request is shown. */
export function clearStatus() {
  for (const id of ["state", "cancel", "kill", "replay", "request-line"]) byId(id).hidden = true;
}

/**
 * Announce events to screen readers, but not tokens, which arrive faster than speech.
 *
 * @param {import("./run.js").Run} run
 * @param {import("./run.js").StreamEvent} event
 */
export function announce(run, { event, data }) {
  const texts = { queued: "Queued.", started: "A worker has started.", migrated: `Migrated: another worker resumes at token ${data.resumed_at}.` };
  if (isTerminal(event)) say(`${stateName(event)}. ${run.text.slice(0, MAX_SPOKEN_CHARS)}`);
  else if (event in texts) say(texts[/** @type {keyof typeof texts} */ (event)]);
}

/** @param {string} text */
function say(text) {
  byId("announcer").textContent = text;
}
