/** Formatting of numbers, durations and states. */

/** @param {number} value @param {string} noun */
export function count(value, noun) {
  return `${value.toLocaleString("en")} ${noun}${value === 1 ? "" : "s"}`;
}

/** Milliseconds with a sensible number of digits. @param {number} value */
export function ms(value) {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value >= 100 ? Math.round(value) : value.toFixed(1)} ms`;
}

/** @param {number} part of 1 */
export function percent(part) {
  return `${(100 * part).toFixed(part > 0.1 ? 0 : 1)} %`;
}

/** @param {number} logprob a natural logarithm */
export function probability(logprob) {
  const part = Math.exp(logprob);
  return part < 0.0005 ? "< 0.1 %" : `${(100 * part).toFixed(1)} %`;
}

/** With a capital first letter. @param {string} text */
export function capitalised(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** A relative time. @param {number} at milliseconds since the epoch */
export function ago(at) {
  const s = Math.max(0, (Date.now() - at) / 1000);
  if (s < 60) return "just now";
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ago`;
  return new Date(at).toLocaleDateString("en", { day: "numeric", month: "short" });
}

const STATES = {
  queued: "Queued",
  in_progress: "In progress",
  completed: "Completed",
  incomplete: "Incomplete",
  failed: "Failed",
  cancelled: "Cancelled",
  expired: "Expired",
  gone: "Gone",
};

/** @param {string} state */
export function stateName(state) {
  return STATES[/** @type {keyof typeof STATES} */ (state)] ?? state;
}
