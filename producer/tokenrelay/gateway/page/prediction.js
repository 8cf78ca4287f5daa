/** The prediction trace: one line per entry, with numbered layers and times. */

import { byId, el, visible } from "./dom.js";
import { count } from "./format.js";

const MAX_LINES = 40;

export class Prediction {
  /** @type {import("./run.js").Run | null} */
  #run = null;
  #all = false;

  /** @param {import("./run.js").Run} run */
  render(run) {
    if (run !== this.#run) this.#all = false;
    this.#run = run;
    byId("prediction").hidden = run.lines.length === 0;
    byId("prediction-summary").textContent = `${count(run.layers, "layer")}. Times are Redis’s, taken when each entry was written.`;
    // A takeover may take seconds, and would flatten all other bars.
    const longest_ms = run.lines.reduce((most, line) => (line.layer === null ? most : Math.max(most, line.step_ms)), 0.001);
    const heads = [
      el("th", { scope: "col", class: "layer" }, el("span", { class: "unseen" }, "Number")),
      el("th", { scope: "col" }, "Layer"),
      el("th", { scope: "col" }, "Data"),
      el("th", { scope: "col", class: "number" }, "Step, ms"),
      el("th", { scope: "col", class: "number since" }, "Since submit, ms"),
    ];
    const rows = this.#shown(run).map((line) => (typeof line === "number" ? this.#more(line) : row(run, line, longest_ms)));
    const caption = el("caption", { class: "unseen" }, "Prediction trace");
    const table = el("table", { class: "trace" }, caption, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows));
    byId("prediction-body").replaceChildren(table);
  }

  /** Lines, and numbers of elided ones in the middle of a long answer. @param {import("./run.js").Run} run */
  #shown(run) {
    const { lines } = run;
    if (this.#all || lines.length <= MAX_LINES) return lines;
    const kept = MAX_LINES / 2;
    /** @type {(import("./run.js").Line | number)[]} */
    const middle = [];
    for (const line of lines.slice(kept, -kept)) {
      const last = middle.at(-1);
      // A takeover is never elided.
      if (!line.token) middle.push(line);
      else if (typeof last === "number") middle[middle.length - 1] = last + 1;
      else middle.push(1);
    }
    return [...lines.slice(0, kept), ...middle, ...lines.slice(-kept)];
  }

  /** @param {number} left */
  #more(left) {
    const all = () => {
      this.#all = true;
      if (this.#run) this.render(this.#run);
    };
    const button = el("button", { type: "button", class: "quiet", onclick: all }, `Show ${left.toLocaleString("en")} more`);
    return el("tr", { class: "more" }, el("td", { colspan: 5 }, button));
  }
}

/** @param {import("./run.js").Run} run @param {import("./run.js").Line} line @param {number} longest_ms */
function row(run, line, longest_ms) {
  const bar = el("span", { class: "step-bar", "aria-hidden": "true" });
  bar.style.setProperty("--part", String(Math.min(1, line.step_ms / longest_ms)));
  const data = line.token ? el("q", { class: "token" }, ...visible(line.data)) : el("span", {}, line.data);
  const since_ms = (line.at_us - run.lines[0].at_us) / 1000;
  return el(
    "tr",
    { class: line.layer === null ? "event" : null, "data-kind": line.kind },
    el("td", { class: "number layer" }, String(line.layer ?? "")),
    el("th", { scope: "row" }, line.kind),
    el("td", { class: "data" }, data),
    el("td", { class: "number step" }, `+${line.step_ms.toFixed(1)}`, bar),
    el("td", { class: "number since" }, since_ms.toFixed(1)),
  );
}
