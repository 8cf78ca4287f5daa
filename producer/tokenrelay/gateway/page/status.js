/** What the request on the page is now: its state, its buttons, and what a screen reader is told. */

import { byId, el } from "./dom.js";
import { isTerminal } from "./run.js";
import { stateName } from "./words.js";

const MOST_SPOKEN_CHARS = 500;

/**
 * @param {import("./run.js").Run} run
 * @param {{isActive: boolean, isReplaying: boolean, isDemo: boolean, isLost: boolean}} now
 */
export function renderStatus(run, { isActive, isReplaying, isDemo, isLost }) {
  const state = byId("state");
  state.hidden = false;
  state.className = `state ${run.state}`;
  const lost = isLost && isActive ? "Connection lost, trying again" : null;
  const told = lost ?? (isReplaying ? "Replay" : run.problem ? `${stateName(run.state)}, ${run.problem}` : stateName(run.state));
  if (state.textContent !== told) state.textContent = told;
  const hadFocus = document.activeElement;
  byId("cancel").hidden = !isActive;
  byId("kill").hidden = !(isActive && isDemo);
  byId("replay").hidden = !run.ended || isReplaying || run.tokens.length === 0;
  // A button that goes away takes the focus with it: hand it to what stands in its place.
  if (hadFocus instanceof HTMLElement && hadFocus.hidden && !byId("replay").hidden) byId("replay").focus();
  renderRequest(run);
}

/** @param {import("./run.js").Run} run */
function renderRequest(run) {
  const line = byId("request-line");
  line.hidden = false;
  const worker = (run.migrations.at(-1) ?? run.started)?.worker;
  const about = [run.model && `model ${run.model}`, worker && `worker ${worker}`, run.started && `seed ${run.started.seed}`];
  const told = about.filter(Boolean).join(" · ");
  if (line.dataset.told === run.requestId + told) return;
  line.dataset.told = run.requestId + told;
  line.replaceChildren("Request ", el("code", {}, run.requestId), told ? ` · ${told}` : "");
}

/** No request is on the page. */
export function clearStatus() {
  for (const id of ["state", "cancel", "kill", "replay", "request-line"]) byId(id).hidden = true;
}

/**
 * Say what happened, not each token: those come faster than anybody can be read to.
 *
 * @param {import("./run.js").Run} run
 * @param {import("./run.js").StreamEvent} event
 */
export function announce(run, { event, data }) {
  const told = { queued: "Queued.", started: "A worker has begun.", migrated: `Migrated: another worker goes on with token ${data.resumed_at}.` };
  if (isTerminal(event)) say(`${stateName(event)}. ${run.text.slice(0, MOST_SPOKEN_CHARS)}`);
  else if (event in told) say(told[/** @type {keyof typeof told} */ (event)]);
}

/** @param {string} text */
function say(text) {
  byId("announcer").textContent = text;
}
