/** Streaming tokens: one chip per token with a bar for its delay, and the details of the selected one. */

import { alternativesList, alternativesText } from "./alternatives.js";
import { el, visible } from "./dom.js";
import { median } from "./run.js";
import { ms } from "./format.js";

/** Above this number of tokens, chips have bars only; the numbers are in the details. */
const DENSE = 80;
/** A bar is full at this multiple of the median delay, so that one long wait doesn't flatten the others. */
const FULL = 3;

export class TokenFlow {
  /** @type {import("./run.js").Run | null} */
  #run = null;
  #lines = 0;
  /** @type {HTMLElement | null} */
  #shown = null;

  /** @param {HTMLElement} list @param {HTMLElement} detail @param {HTMLElement} alternatives */
  constructor(list, detail, alternatives) {
    this.list = list;
    this.detail = detail;
    this.alternatives = alternatives;
    list.addEventListener("pointerover", (event) => this.#show(chipOf(event.target)));
    list.addEventListener("pointerleave", () => this.#show(chipOf(document.activeElement)));
    // Not every browser focuses a button that is tapped.
    list.addEventListener("click", (event) => chipOf(event.target)?.focus());
    list.addEventListener("focusin", (event) => this.#focused(chipOf(event.target)));
    list.addEventListener("focusout", () => this.#show(null));
    list.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Add new tokens, or start over for another run. @param {import("./run.js").Run} run */
  render(run) {
    if (run !== this.#run) {
      this.#run = run;
      this.#lines = 0;
      this.#shown = null;
      this.list.replaceChildren();
      this.alternatives.replaceChildren();
      this.alternatives.style.removeProperty("min-height");
    }
    for (const line of run.lines.slice(this.#lines)) {
      if (line.token) this.list.append(this.#chip(line));
      else if (line.kind === "Baton Pass") this.list.append(takeover(run, line));
    }
    this.#lines = run.lines.length;
    const steps = run.lines.filter((line) => line.token && line.step_ms > 0).map((line) => line.step_ms);
    const full_ms = Math.max(0.1, FULL * (median(steps) ?? 1));
    this.list.style.setProperty("--full", String(full_ms));
    this.list.classList.toggle("dense", run.tokens.length > DENSE);
    this.list.hidden = this.detail.hidden = run.tokens.length === 0 && run.migrations.length === 0;
    const isScored = run.tokens.some((token) => token.logprobs);
    this.alternatives.hidden = !isScored;
    this.legend = `Bars: time since the previous entry, full at ${ms(full_ms)}. ${isScored ? "Lines: a token's probability. " : ""}`
      + `Point at a token or use the arrow keys for details${isScored ? " and alternatives" : ""}.`;
    if (!this.#shown) this.detail.textContent = this.legend;
  }

  /** @param {import("./run.js").Line} line */
  #chip(line) {
    const isFirst = this.list.querySelector("button") === null;
    const described = detailOf(/** @type {any} */ (this.#run), line);
    const button = el("button", { type: "button", class: "chip", tabindex: isFirst ? 0 : -1 }, ...visible(line.token.text));
    button.setAttribute("aria-label", described + alternativesText(line.token));
    button.dataset.detail = described;
    button.dataset.index = String(line.token.index);
    if (line.token.logprobs) {
      button.classList.add("scored");
      button.style.setProperty("--part", String(Math.exp(line.token.logprobs[0].logprob)));
    }
    const bar = el("span", { class: "bar" });
    bar.style.setProperty("--ms", String(line.step_ms));
    const delay = el("span", { class: "delay", "aria-hidden": "true" }, bar, el("span", { class: "ms" }, line.step_ms.toFixed(1)));
    return el("li", {}, button, delay);
  }

  /** @param {HTMLElement | null} chip */
  #show(chip) {
    this.#shown?.classList.remove("shown");
    chip?.classList.add("shown");
    this.#shown = chip;
    this.detail.textContent = chip?.dataset.detail ?? this.legend ?? "";
    this.#showAlternatives(this.#run?.tokens[Number(chip?.dataset.index) - 1]);
  }

  /** What is below doesn't move when the pointer goes from token to token. @param {any} token */
  #showAlternatives(token) {
    const box = this.alternatives;
    if (box.hidden) return;
    box.style.minHeight = `${box.offsetHeight}px`;
    box.replaceChildren(...(token?.logprobs ? [alternativesList(token)] : []));
  }

  /** One tab stop for all chips: the last focused one. @param {HTMLElement | null} chip */
  #focused(chip) {
    if (!chip) return;
    for (const other of this.list.querySelectorAll("button[tabindex='0']")) other.setAttribute("tabindex", "-1");
    chip.setAttribute("tabindex", "0");
    this.#show(chip);
  }

  /** @param {KeyboardEvent} event */
  #move(event) {
    const chips = /** @type {HTMLElement[]} */ ([...this.list.querySelectorAll("button")]);
    const at = chips.indexOf(/** @type {any} */ (chipOf(event.target)));
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: chips.length - 1 };
    const target = chips[to[/** @type {keyof typeof to} */ (event.key)] ?? -1];
    if (at < 0 || !target) return;
    event.preventDefault();
    target.focus();
  }
}

/** @param {any} target @returns {HTMLElement | null} */
function chipOf(target) {
  return target instanceof Element ? target.closest("button.chip") : null;
}

/** @param {import("./run.js").Run} run @param {import("./run.js").Line} line */
function detailOf(run, line) {
  const { index, text, token_id } = line.token;
  const shown = text === "" ? "no text yet, held back" : `“${text}”`;
  const since = ms((line.at_us - run.lines[0].at_us) / 1000);
  const step = line.step_ms === 0 ? "published together with the previous one" : `${ms(line.step_ms)} after the previous entry`;
  return `Token ${index}: ${shown}, vocabulary ID ${token_id}, ${step}, ${since} after submit. Redis entry ${index}-0.`;
}

/** @param {import("./run.js").Run} run @param {import("./run.js").Line} line */
function takeover(run, line) {
  const { worker, attempt, resumed_at } = run.migrations[run.lines.filter(isTakeover).indexOf(line)];
  return el(
    "li",
    { class: "migrated" },
    el("strong", {}, "migrated"),
    ` attempt ${attempt} on ${worker} resumes at token ${resumed_at}, ${ms(line.step_ms)} after the last one`,
  );
}

/** @param {import("./run.js").Line} line */
const isTakeover = (line) => line.kind === "Baton Pass";
