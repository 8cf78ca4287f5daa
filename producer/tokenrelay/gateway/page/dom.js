/**
 * DOM elements, created without HTML strings, so that text of models and prompts is never parsed as markup.
 */

/**
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes] any attribute, or a handler such as `onclick`; null and false are skipped
 * @param {...(Node | string | null)} children
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** @param {string} id @returns {any} the element, which must exist in index.html */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element;
}

/**
 * Text with visible blanks and line ends. The marks are CSS only: copying and screen readers get the plain text.
 *
 * @param {string} text
 * @returns {Node[]}
 */
export function visible(text) {
  return text.split(/(\s)/u).filter(Boolean).map((part) => {
    if (!/^\s$/u.test(part)) return document.createTextNode(part);
    return el("span", { class: part === "\n" ? "blank line-end" : "blank" }, part);
  });
}

/**
 * A function that runs `work` once in the next animation frame, coalescing calls.
 *
 * @param {() => void} work
 */
export function oncePerFrame(work) {
  let isScheduled = false;
  return () => {
    if (isScheduled) return;
    isScheduled = true;
    requestAnimationFrame(() => {
      isScheduled = false;
      work();
    });
  };
}
